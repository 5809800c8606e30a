"""Find hard negatives: for each schema entry, the entries that a model confuses with it.

--hard_negatives auto derives them from the schema and the annotations; --hard_negatives FILE reads {type: [types]}, or
the scores that ie_eval.py writes, which count the confusions of a model: {"confusions": {type: {predicted type: 3}}}.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from annotation_reading.annotated_sentences import AnnotatedSentence, types_by_name
from json_rows.row_files import read_json

from extraction_building.label_similarity import label_similarities
from extraction_building.schema_items import Schema

PER_ENTRY = 8  # hard negatives of an entry, two batches of four
MAX_ENTRIES = 5000  # of a schema; the similarities of 5000 labels take 100 MB
ERRORS = ("missed", "spurious")  # keys of confusions that are not types
FORM = '{type: [types]} or the scores of ie_eval.py with "confusions"'
Hard = dict[int, list[int]]


class HardNegatives(NamedTuple):
    """entries: schema entry -> hard negatives, most confusable first. origin: description for the data card."""

    entries: Hard
    origin: str


class RelationTypes:
    """Collects the types of subjects and objects of each relation from annotated sentences."""

    def __init__(self) -> None:
        self.subjects: dict[str, Counter[str]] = defaultdict(Counter)
        self.objects: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, sentence: AnnotatedSentence) -> None:
        """Add the relations of a sentence; types that they lack are taken from the sentence's entities."""
        types = types_by_name(sentence.entities or ())
        for relation in sentence.relations or ():
            subject, object_ = relation.types(types)
            if subject:
                self.subjects[relation.label][subject] += 1
            if object_:
                self.objects[relation.label][object_] += 1


def read_hard_negatives(path: str, schema: Schema) -> HardNegatives:
    """Return the hard negatives in a file; raises FileNotFoundError, or ValueError if none is of the schema."""
    content = read_json(path, f"--hard_negatives takes auto, or a file of {FORM}")
    confusions = content.get("confusions") if isinstance(content, dict) else None
    lists = content if confusions is None else confused_types(confusions)
    if not isinstance(lists, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists.values()
    ):
        raise ValueError(f"{path} does not have the form {FORM}")
    entries: Hard = {}
    for name, others in lists.items():
        numbers = dict.fromkeys(number for other in others for number in schema.named(other))
        for entry in schema.named(name):
            entries[entry] = [number for number in numbers if number != entry]
    entries = {entry: numbers for entry, numbers in entries.items() if numbers}
    if not entries and lists:
        raise ValueError(
            f"{path} has no two types of the schema ({', '.join(schema.labels[:3])}, …); give the hard negatives of "
            "this schema, or --hard_negatives auto"
        )
    return HardNegatives(entries, path)


def confused_types(confusions: Any) -> Any:
    """Return type -> types that a model predicted instead, most often first; other forms are returned unchanged.

    confusions: {type: {predicted type: count}}, or several of these by kind of item.
    """
    if not isinstance(confusions, Mapping) or not all(isinstance(counts, Mapping) for counts in confusions.values()):
        return confusions
    if any(isinstance(count, Mapping) for counts in confusions.values() for count in counts.values()):
        tables = [confused_types(table) for table in confusions.values()]
        merged: dict[str, list[str]] = defaultdict(list)
        for name, types in (pair for table in tables if isinstance(table, Mapping) for pair in table.items()):
            merged[name] += types
        return merged
    return {
        name: sorted(
            (other for other in counts if other not in (name, *ERRORS) and is_count(counts[other])),
            key=lambda other: (-counts[other], other),
        )
        for name, counts in confusions.items()
        if name not in ERRORS
    }


def is_count(value: Any) -> bool:
    """Return whether a value is a number above 0."""
    return type(value) in (int, float) and value > 0


def automatic_hard_negatives(schema: Schema, types: RelationTypes) -> HardNegatives:
    """Return for each entry the entries with the highest confusability above 0, at most PER_ENTRY.

    Confusability is the similarity of the labels (cosine, up to 1) plus the share of common types of subject and of
    object (up to 1), or of common roles or attributes (Jaccard, up to 1). Ties are in the order of the schema. Raises
    ValueError for a schema of more than MAX_ENTRIES entries.
    """
    if len(schema.items) > MAX_ENTRIES:
        raise ValueError(
            f"--hard_negatives auto takes at most {MAX_ENTRIES} types, and the schema has {len(schema.items)}; give a "
            "file of hard negatives"
        )
    if len(schema.items) < 2:
        return HardNegatives({}, "auto: the schema has a single entry")
    scores, method = label_similarities([item.name for item in schema.items])
    scores = scores + shared_parts(schema, types)
    np.fill_diagonal(scores, -np.inf)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :PER_ENTRY]
    entries = {entry: row[scores[entry, row] > 0].tolist() for entry, row in enumerate(best)}
    return HardNegatives(entries, f"auto, similarity by {method}")


def shared_parts(schema: Schema, types: RelationTypes) -> np.ndarray:
    """Return the share of common types, roles or attributes of each pair of entries, (entries, entries) float32."""
    sides: list[list[Sequence[str] | Counter[str]]]
    if schema.task == "spo":
        sides = [[item.parts[:1] for item in schema.items], [item.parts[1:] for item in schema.items]]
    elif schema.task == "re":
        sides = [[side[item.name] for item in schema.items] for side in (types.subjects, types.objects)]
    else:
        sides = [[item.parts for item in schema.items]]
    return sum((jaccard(side) for side in sides), np.zeros(1, np.float32)) / len(sides)


def jaccard(sets: Sequence[Sequence[str] | Counter[str]]) -> np.ndarray:
    """Return the Jaccard index (intersection by union) of each pair of sets, 0 for two empty ones."""
    columns = {name: column for column, name in enumerate(dict.fromkeys(name for each in sets for name in each))}
    members = np.zeros((len(sets), max(1, len(columns))), np.float32)
    for row, each in zip(members, sets, strict=True):
        row[[columns[name] for name in each]] = 1
    common = members @ members.T
    sizes = members.sum(axis=1)
    return common / np.maximum(sizes[:, None] + sizes[None, :] - common, 1)
