"""Write the demo world as a knowledge graph, and texts whose entities and relations are known, for kg2instruct.py.

Output files in the folder graph/:
    triples.tsv, aliases.tsv, types.tsv     the facts of training, and dates of birth and populations; ids are Q1, Q2, …
    schema.json                             the kinds of triples
    texts.jsonl                             documents with short names (A. Branson, 东安阳), names that two entities
                                            share, dates and numbers in several forms, sentences about two unrelated
                                            entities, and sentences that name two related entities and do not state
                                            their relation
    texts_annotated.jsonl                   the sentences of these documents with the entities that are meant, their
                                            ids, and the stated relations
"""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from demo_world.world_facts import RELATIONS, Fact, sample_facts

SHARED_TITLE = 0.05  # share of persons and places with the title of another one
SHORT_NAME = 0.25  # share of mentions, after the first, that use a short name
UNRELATED = 0.15  # share of documents with a sentence about two unrelated entities
UNSTATED = 0.05  # share of documents with a sentence that does not state the relation of its two entities
UNRELATED_SENTENCES = {
    "en": ("{a} met {b} last year.", "A friend of {a} wrote to {b}."),
    "zh": ("{a}去年见到了{b}。", "{a}的朋友给{b}写了信。"),
}
UNSTATED_SENTENCES = {
    "en": ("The news was about {a} and {b}.", "Nobody asked about {a} or {b}."),
    "zh": ("新闻提到了{a}和{b}。", "没有人问起{a}或{b}。"),
}
LITERAL = 0.4  # share of documents with a date of birth or a population
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
TENS = ("ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DIGITS = "〇一二三四五六七八九"
# kind of the subject -> relation, type of the literal, sentence, by language
LITERALS = {
    "person": {"en": ("date of birth", "date", "{a} was born on {b}."), "zh": ("出生日期", "日期", "{a}出生于{b}。")},
    "place": {"en": ("population", "number", "{a} has {b} inhabitants."), "zh": ("人口", "数量", "{a}有{b}人。")},
}


class GraphEntity(NamedTuple):
    """An entity. name: its name in the facts; title, short: its names in texts; literal: its literal in the graph."""

    id: str
    kind: str
    name: str
    title: str
    short: str
    literal: str


def literal_forms(literal: str, language: str) -> list[str]:
    """Return the forms in which texts write 1879-03-14 or a multiple of ten thousand."""
    if "-" not in literal:
        number = int(literal)
        if language == "zh":
            return [f"{number // 10000}万", f"{number // 10000} 万", f"{DIGITS[number // 10000]}万", f"{number:,}"]
        return [f"{number:,}", f"{number // 1000} thousand", f"{TENS[number // 10000 - 1]} thousand", literal]
    year, month, day = map(int, literal.split("-"))
    if language == "zh":
        tens = ("", "十", "二十", "三十")
        written = [tens[number // 10] + (DIGITS[number % 10] if number % 10 else "") for number in (month, day)]
        digits = "".join(DIGITS[int(digit)] for digit in str(year))
        return [f"{year}年{month}月{day}日", f"{digits}年{written[0]}月{written[1]}日", literal]
    name = MONTHS[month - 1]
    return [
        f"{day} {name} {year}",
        f"{name} {day}, {year}",
        f"{name[:3]}{'.' if name[3:] else ''} {day}, {year}",
        literal,
    ]


def random_literal(kind: str, rng: random.Random) -> str:
    """Return a date of birth for a person, a population for a place, "" for other kinds."""
    if kind == "person":
        return f"{rng.randint(1800, 1999)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    return str(rng.randint(1, 9) * 10000) if kind == "place" else ""


def short_name(language: str, kind: str, name: str) -> str:
    """Return a shorter name, which several entities may share: A. Branson, Ashbridge, ASB, 明勇, 东安阳, 华达."""
    if language == "zh":
        return {"person": name[1:], "place": name[:-1], "organisation": name[:-2], "work": name.strip("《》")}[kind]
    words = name.split()
    if kind == "person":
        return f"{words[0][0]}. {words[1]}"
    if kind == "organisation":
        return "".join(word[0] for word in words)
    return " ".join(words[1:])


def graph_entities(
    facts: list[list[Fact]], language: str, first_id: int, rng: random.Random
) -> dict[tuple[str, str], GraphEntity]:
    """Return (kind, name) -> entity for the subjects and objects of the facts of a language."""
    names = dict.fromkeys(
        key
        for fact in (fact for known in facts for fact in known)
        for key in (
            (RELATIONS[fact.relation].subject, fact.subject), (RELATIONS[fact.relation].object, fact.object),
        )
    )  # fmt: skip
    entities, titles = dict[tuple[str, str], GraphEntity](), dict[str, list[str]]()
    for number, (kind, name) in enumerate(names, first_id):
        earlier, title = titles.setdefault(kind, []), name
        if kind in ("person", "place") and earlier and rng.random() < SHARED_TITLE:
            title = rng.choice(earlier)
        else:
            earlier.append(title)
        entities[kind, name] = GraphEntity(
            f"Q{number}", kind, name, title, short_name(language, kind, title), random_literal(kind, rng)
        )
    return entities


def linked_document(
    facts: list[list[Fact]], entities: dict[tuple[str, str], GraphEntity], language: str, labels: dict[str, str],
    rng: random.Random,
) -> tuple[str, list[dict[str, Any]]]:  # fmt: skip
    """Return a document and the annotations of its sentences. labels: kind -> type of entities."""
    stated = sample_facts(facts, rng.choice((2, 3, 4)), rng)
    named: set[str] = set()
    rows: list[dict[str, Any]] = []

    def add(template: str, entities_named: dict[str, GraphEntity], relation: str = "", literal: str = "") -> None:
        mentions = {}
        for key, entity in entities_named.items():
            is_short = entity.id in named and rng.random() < SHORT_NAME
            mentions[key] = entity.short if is_short else entity.title
            named.add(entity.id)
        listed = [
            {"name": mentions[key], "type": labels[entity.kind], "id": entity.id}
            for key, entity in entities_named.items()
        ]
        if literal:
            mentions["b"] = literal
        names = list(mentions.values())
        rows.append(
            {
                "sentence": template.format(**mentions),
                "entity_list": listed,
                "relation_list": [{"subject": names[0], "relation": relation, "object": names[1]}] if relation else [],
            }
        )

    for fact in stated:
        relation = RELATIONS[fact.relation]
        pair = entities[relation.subject, fact.subject], entities[relation.object, fact.object]
        add(rng.choice(relation.sentences[language]), dict(zip("so", pair, strict=True)), relation.label[language])
    if rng.random() < LITERAL and (subject := next((one for one in pair if one.literal), None)):
        label, _, template = LITERALS[subject.kind][language]
        add(template, {"a": subject}, label, rng.choice(literal_forms(subject.literal, language)))
    if rng.random() < UNSTATED:
        add(rng.choice(UNSTATED_SENTENCES[language]), dict(zip("ab", pair, strict=True)))
    if rng.random() < UNRELATED:
        persons = [entity for (kind, _), entity in entities.items() if kind == "person"]
        add(rng.choice(UNRELATED_SENTENCES[language]), dict(zip("ab", rng.sample(persons, 2), strict=True)))
    return (" " if language == "en" else "").join(row["sentence"] for row in rows), rows


def write_graph(
    folder: Path, facts: dict[str, list[list[Fact]]], type_names: dict[str, dict[str, str]], documents: int, seed: int
) -> None:
    """Write the files. facts, type_names: by language; documents: in each language."""
    rng = random.Random(f"graph {seed}")
    folder.mkdir()
    triples, aliases, types, schema = list[str](), list[str](), list[str](), list[dict[str, str]]()
    texts, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    count = 1
    for language, known in facts.items():
        entities = graph_entities(known, language, count, rng)
        count += len(entities)
        for entity in entities.values():
            aliases += [f"{entity.id}\t{name}\t{language}\n" for name in (entity.title, entity.short)]
            types.append(f"{entity.id}\t{type_names[language][entity.kind]}\n")
            if entity.literal:
                triples.append(f"{entity.id}\t{LITERALS[entity.kind][language][0]}\t{entity.literal}\n")
        for fact in (fact for subject in known for fact in subject):
            relation = RELATIONS[fact.relation]
            ends = entities[relation.subject, fact.subject].id, entities[relation.object, fact.object].id
            triples.append(f"{ends[0]}\t{relation.label[language]}\t{ends[1]}\n")
        names = type_names[language]
        kinds = [(names[one.subject], one.label[language], names[one.object]) for one in RELATIONS.values()]
        kinds += [(names[kind], *one[language][:2]) for kind, one in LITERALS.items()]
        schema += [dict(zip(("subject_type", "predicate", "object_type"), kind, strict=True)) for kind in kinds]
        for _ in range(documents):
            text, rows = linked_document(known, entities, language, type_names[language], rng)
            annotations += [{"document": len(texts), **row} for row in rows]
            texts.append({"text": text})
    for name, lines in (("triples", triples), ("aliases", aliases), ("types", types)):
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "schema.json").write_text(json.dumps(schema, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name, content in (("texts", texts), ("texts_annotated", annotations)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
