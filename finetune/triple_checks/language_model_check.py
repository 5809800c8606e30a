"""Let a language model reject triples that a sentence does not state, and add triples that it states.

The model is asked through an OpenAI-compatible API, once for each row with two entities or a triple. Entities and
triples are numbered in the question, so that the answer refers to places in the text. An answer that cannot be read
leaves the row unchanged.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from endpoint_requests.endpoint_options import opened_client
from graph_linking.graph_files import Schema
from graph_linking.sentence_annotations import Row, allowed_rule

MAX_TOKENS = 512
MOST_ITEMS = 64  # entities and triples in a question
ROUND_REQUESTS = 32  # rows that are checked together, per concurrent request
MOST_RELATIONS = 100  # a graph with more relations needs a schema for additions
QUESTION = """Sentence: {sentence}

Entities:
{entities}

Candidate facts:
{facts}

Relations: {relations}

Which candidate facts does the sentence not state? Which facts between these entities does it state in addition, with \
one of these relations? Reply with a JSON object only: {{"reject": [numbers of candidate facts], \
"add": [{{"subject": number of an entity, "relation": "name", "object": number of an entity}}]}}"""


class ModelServer(NamedTuple):
    """url and model: see EndpointOptions. options: concurrency and timeout. The key is read from OPENAI_API_KEY."""

    url: str
    model: str
    options: Mapping[str, Any] = {}


class LanguageModelCheck:
    """Rejects and adds relations of rows.

    relations: names that may be added. schema: the allowed triples, None: all. output: the journal of the answers is
    `<output>.journal`. Raises ConnectionError if the server does not answer a request.
    """

    def __init__(self, server: ModelServer, relations: Sequence[str], schema: Schema | None, output: Path) -> None:
        labels = [rule.label for rules in schema.values() for rule in rules] if schema else list(relations)
        self.relations = list(dict.fromkeys(labels)) if schema or len(labels) <= MOST_RELATIONS else []
        self.server, self.schema, self.output = server, schema, output

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the corrected rows, in order."""
        with opened_client(str(self.output), *self.server) as client:
            while some := list(islice(rows, ROUND_REQUESTS * client.options.concurrency)):
                questions = [self.question(row) for row in some]
                bodies = [client.request(question, None, 0, MAX_TOKENS) for question in questions if question]
                answers = iter(client.complete(bodies, "checks", stop))
                for row, question in zip(some, questions, strict=True):
                    yield self.corrected(row, parsed_answer(next(answers).text)) if question else row

    def question(self, row: Row) -> str:
        """Return the question about a row, or "" if there is nothing to ask."""
        entities, facts = row["entity_list"][:MOST_ITEMS], row["relation_list"][:MOST_ITEMS]
        if not facts and (len(entities) < 2 or not self.relations):
            return ""
        return QUESTION.format(
            sentence=row["sentence"],
            entities="\n".join(f"{at}. {one['name']} ({one['type']})" for at, one in enumerate(entities, 1)),
            facts="\n".join(
                f"{at}. {one['subject']} | {one['relation']} | {one['object']}" for at, one in enumerate(facts, 1)
            )
            or "none",
            relations=", ".join(self.relations) or "none; add nothing",
        )

    def corrected(self, row: Row, answer: dict[str, Any]) -> Row:
        """Return a row without the rejected relations, and with the added ones that are valid."""
        numbers = answer.get("reject")
        rejected = {one for one in numbers if isinstance(one, int)} if isinstance(numbers, list) else set()
        relations = [one for at, one in enumerate(row["relation_list"], 1) if at not in rejected]
        known = {(one["subject"], one["relation"], one["object"]) for one in row["relation_list"]}
        additions = answer.get("add")
        for one in additions[:MOST_ITEMS] if isinstance(additions, list) else ():
            added = self._addition(row, one)
            if added and (triple := (added["subject"], added["relation"], added["object"])) not in known:
                known.add(triple)
                relations.append(added)
        return row | {"relation_list": relations}

    def _addition(self, row: Row, one: Any) -> Row | None:
        """Return the relation that an answer adds, or None if it is not one between two entities of the row."""
        entities = row["entity_list"][:MOST_ITEMS]
        numbers: list[Any] = [one.get("subject"), one.get("object")] if isinstance(one, dict) else []
        is_valid = all(type(number) is int and 1 <= number <= len(entities) for number in numbers)
        if not is_valid or len(set(numbers)) < 2 or one.get("relation") not in self.relations:
            return None
        subject, object = (entities[number - 1] for number in numbers)
        predicates = [
            name for name, rules in (self.schema or {}).items() for rule in rules if rule.label == one["relation"]
        ]
        if self.schema and not any(
            allowed_rule(self.schema, name, (subject["type"],), (object["type"],)) for name in predicates
        ):
            return None
        return {
            "subject": subject["name"], "relation": one["relation"], "object": object["name"],
            "subject_type": subject["type"], "object_type": object["type"],
            "subject_spans": subject["spans"], "object_spans": object["spans"],
            "subject_id": subject.get("id", ""), "object_id": object.get("id", ""),
        }  # fmt: skip


def parsed_answer(text: str) -> dict[str, Any]:
    """Return the JSON object in the model's answer, {} if there is none."""
    try:
        answer = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def stop(key: str, reason: str) -> None:
    """End the run when a request fails."""
    raise ConnectionError(f"the server does not answer a request ({reason}); the same command resumes")
