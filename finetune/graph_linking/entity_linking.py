"""Link the names of a document to entities of the graph.

All mentions of a name in a document mean the same entity. A name of one entity is linked to it. A name of several is
linked by the first of these rules that prefers one of them:
    1. the entity with most neighbours in the graph among the entities that are already linked in the document;
    2. the entity with most neighbours that have a name in the document, also an ambiguous one;
    3. the entity with most neighbours in the graph.
Rule 1 is repeated, since every link may decide further names. A name that is still undecided is not linked.
"""

from collections.abc import Callable

from graph_linking.graph_index import GraphIndex
from graph_linking.name_matching import NameMatches

ROUNDS = 4  # repetitions of rule 1
MOST_CANDIDATES = 1000  # a name of more entities is not linked


EntityMention = tuple[int, int, int]  # a linked name: [start, end) in characters, and the number of the entity


def link_names(index: GraphIndex, matches: NameMatches, only: list[int]) -> list[EntityMention]:
    """Return the linked names of a document, by position.

    matches: the names that the automaton found. only: the entity of each of them, -1 if several entities have the name
    (`GraphIndex.only_candidates`).
    """
    if -1 not in only:
        return list(zip(matches.starts, matches.ends, only, strict=True))
    names = dict.fromkeys(name for name, entity in zip(matches.names, only, strict=True) if entity < 0)
    chosen = _resolve(index, {name: index.candidates(name) for name in names}, set(only) - {-1})
    entities = [
        chosen.get(name, -1) if entity < 0 else entity for name, entity in zip(matches.names, only, strict=True)
    ]
    mentions = zip(matches.starts, matches.ends, entities, strict=True)
    return [mention for mention in mentions if mention[2] >= 0]


def _resolve(index: GraphIndex, candidates: dict[int, tuple[int, ...]], linked: set[int]) -> dict[int, int]:
    """Return the entity of each ambiguous name that the rules decide.

    candidates: of the ambiguous names; linked: the entities of the other names.
    """
    chosen: dict[int, int] = {}
    pending = [name for name, found in candidates.items() if 1 < len(found) <= MOST_CANDIDATES]
    for _ in range(ROUNDS):
        undecided = []
        for name in pending:
            entity = _preferred(candidates[name], lambda one: index.neighbours_among(one, linked))
            if entity is None:
                undecided.append(name)
            else:
                chosen[name] = entity
                linked.add(entity)
        if len(undecided) == len(pending):
            break
        pending = undecided
    named = {entity for found in candidates.values() if len(found) <= MOST_CANDIDATES for entity in found} | linked
    for name in pending:
        entity = _preferred(candidates[name], lambda one: index.neighbours_among(one, named))
        if entity is None:
            entity = _preferred(candidates[name], index.degree)
        if entity is not None:
            chosen[name] = entity
    return chosen


def _preferred(entities: tuple[int, ...], score: Callable[[int], int]) -> int | None:
    """Return the entity with the highest score above 0, or None if several have it."""
    scores = [score(entity) for entity in entities]
    best = max(scores)
    return entities[scores.index(best)] if best and scores.count(best) == 1 else None
