"""Read the JSON exports of annotation tools: Doccano and Label Studio. Each text is one sentence.

Doccano (1.8, JSONL export): {"text", "label": [[start, end, type]]} of sequence labelling, or {"text", "entities":
[{"id", "label", "start_offset", "end_offset"}], "relations": [{"id", "from_id", "to_id", "type"}]} of projects with
relations. Versions before 1.0 write "labels" for "label". Offsets are in characters (Unicode code points).

Label Studio (1.x, JSON export): {"data": {"text"}, "annotations": [{"result": [...]}]}; versions before 1.0 write
"completions" for "annotations". An export does not state the unit of its offsets: current versions count code points,
versions up to 2021 UTF-16 code units, in which an emoji counts as two (see
https://github.com/HumanSignal/label-studio/pull/1559), and early versions (2019) give the position of
a region's last character as its end. An export repeats the text of each region, so the first of these readings that
yields this text is taken.
Results other than labelled regions of text and relations (choices, ratings) are not read.

White space at the ends of a region is removed, since selecting with the mouse often includes it.
"""

import re
from bisect import bisect_left
from itertools import accumulate
from typing import Any

from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Mention, Relation, Span
from annotation_reading.json_row_files import (
    JsonObject,
    RowError,
    is_offset,
    key_names,
    list_at,
    objects_at,
    sentence_of,
    span_of,
    string_at,
    text_at,
)

DOCCANO_FORM = (
    '{"text", "label": [[start, end, type]]} or {"text", "entities": [{"id", "label", "start_offset", "end_offset"}], '
    '"relations": [{"from_id", "to_id", "type"}]}'
)
LABEL_STUDIO_FORM = (
    '{"data": {"text"}, "annotations": [{"result": [{"id", "type": "labels", "value": {"start", "end", "labels"}}]}]}'
)
NEWLINE = re.compile(r"[\r\n]")


def mention_at(text: str, span: Span) -> Mention:
    """Return the mention at a span of the text, without white space at its ends; a span outside the text is kept."""
    start, end = span
    if not 0 <= start < end <= len(text):
        return Mention("", (span,))
    found = text[start:end]
    if not found.strip():
        return Mention(found, (span,))
    start += len(found) - len(found.lstrip())
    return Mention(found.strip(), ((start, start + len(found.strip())),))


def read_doccano_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of a row of Doccano. A relation to an entity that is not in the row becomes a problem."""
    text = text_at(row, "text")
    by_id: dict[Any, Entity] = {}
    entities, relations, problems = [], None, []
    if row.get("entities") is not None:
        for item in objects_at(row, "entities"):
            span = span_of(item.get("start_offset"), item.get("end_offset"))
            entities.append(Entity(string_at(item, "label"), mention_at(text, span)))
            by_id[identifier(item, "id")] = entities[-1]
    else:
        for item in list_at(row, "labels" if "labels" in row and "label" not in row else "label"):
            if not isinstance(item, list) or len(item) != 3 or not isinstance(item[2], str):
                raise RowError(f"has the label {str(item)[:40]!r}, which is not [start, end, type]")
            entities.append(Entity(item[2], mention_at(text, span_of(*item[:2]))))
    if row.get("relations") is not None:
        relations = []
        for item in objects_at(row, "relations"):
            label, ends = string_at(item, "type"), [identifier(item, key) for key in ("from_id", "to_id")]
            if error := missing_end(label, ends, by_id):
                problems.append(error)
            else:
                relations.append(relation_of(label, by_id[ends[0]], by_id[ends[1]]))
    return sentence_of(text, entities, relations, problems=problems)


def identifier(item: JsonObject, key: str) -> str:
    """Return the text or number under a key as text; raises RowError."""
    value = item.get(key)
    if isinstance(value, str) or is_offset(value):
        return str(value)
    raise RowError(f"has no identifier under {key!r} (keys: {key_names(item)})")


def missing_end(label: str, ends: list[str], by_id: dict[str, Any]) -> str:
    """Return a problem if an end of a relation is not among the entities, else ""."""
    missing = [end for end in ends if end not in by_id]
    return f"relation {label!r} has the end {missing[0][:40]!r}, which is not an entity of the text" if missing else ""


def relation_of(label: str, subject: Entity, target: Entity) -> Relation:
    """Return a triple of two entities."""
    return Relation(label, subject.mention, target.mention, subject.type, target.type)


def read_label_studio_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of a Label Studio task.

    Of several annotations of a task, the one marked as ground truth is read, else the first; the others are reported
    as a problem. A task without a completed annotation is reported as a problem and has no annotations.
    """
    text = task_text(row)
    done = [one for one in objects_at(row, "annotations" if "annotations" in row else "completions")
            if not one.get("was_cancelled")]  # fmt: skip
    if not done:
        return sentence_of(text, problems=["has no completed annotation"])
    chosen = next((one for one in done if one.get("ground_truth")), done[0])
    problems = [] if len(done) == 1 else [f"has {len(done)} annotations, of which only one is read"]
    regions = RegionReader(text)
    results = objects_at(chosen, "result")
    for item in results:
        if item.get("type") != "relation" and isinstance(item.get("value"), dict):
            regions.add(item)
    relations = []
    for item in results:
        if item.get("type") == "relation":
            found, errors = task_relations(item, regions.by_id)
            relations += found
            problems += errors
    return sentence_of(text, regions.entities, relations, problems=problems + regions.problems)


def task_text(row: JsonObject) -> str:
    """Return the text of a task: under "text", or the only text in its data; raises RowError."""
    data = row.get("data")
    if not isinstance(data, dict):
        raise RowError(f"has no object under 'data' (keys: {key_names(row)})")
    texts = [key for key, value in data.items() if isinstance(value, str)]
    return text_at(data, texts[0] if len(texts) == 1 and "text" not in data else "text")


def task_relations(item: JsonObject, by_id: dict[str, Entity]) -> tuple[list[Relation], list[str]]:
    """Return the triples of a relation of Label Studio (its direction is right, left or bi: both), and problems."""
    ends = [identifier(item, "from_id"), identifier(item, "to_id")]
    labels = item.get("labels")
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        return [], [f"relation from {ends[0][:40]!r} to {ends[1][:40]!r} has no label"]
    direction, relations, problems = item.get("direction"), [], []
    for label in labels:
        if error := missing_end(label, ends, by_id):
            problems.append(error)
            continue
        subject, target = by_id[ends[0]], by_id[ends[1]]
        if direction != "left":
            relations.append(relation_of(label, subject, target))
        if direction in ("left", "bi"):
            relations.append(relation_of(label, target, subject))
    return relations, problems


class RegionReader:
    """Collects the labelled regions of a Label Studio task."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.entities: list[Entity] = []
        self.by_id: dict[str, Entity] = {}  # the first label of each region
        self.problems: list[str] = []
        # ends[i]: UTF-16 code units of the first i + 1 characters
        self.ends = list(accumulate(1 + (character > "\uffff") for character in text)) if has_long(text) else []

    def add(self, item: JsonObject) -> None:
        """Add a result if it is a region with labels; other results, also those about a region, are ignored."""
        value = item["value"]
        kind = item.get("type")
        # labels, hypertextlabels, …; choices, ratings or a taxonomy of a region repeat its id and its place.
        labels = value.get(kind if isinstance(kind, str) and kind.endswith("labels") and kind in value else "labels")
        if labels is None:
            return
        name = value.get("text") if isinstance(value.get("text"), str) else None
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or not labels:
            self.problems.append(f"region {str(name)[:60]!r} has no label")
            return
        if "start" not in value or "end" not in value:
            return  # choices and other results about the whole text
        if not is_offset(value["start"]) or not is_offset(value["end"]):
            self.problems.append(f"region {str(name)[:60]!r} is not a region of plain text")
            return
        mention = self.mention((value["start"], value["end"]), name)
        found = [Entity(label, mention) for label in labels]
        self.entities += found
        self.by_id.setdefault(identifier(item, "id"), found[0])

    def mention(self, span: Span, name: str | None) -> Mention:
        """Return the mention at a span in characters or UTF-16 code units, with or without its last character.

        The first of these readings that spells `name` is taken.
        """
        if name is None:
            return mention_at(self.text, span)
        start, end = span
        for last in (end, end + 1):
            for found in ((start, last), (self.character(start), self.character(last))):
                if self.spells(found, name):
                    return mention_at(self.text, found)
        return Mention(name, (span,))

    def spells(self, span: Span, name: str) -> bool:
        """Return whether the text at a span is `name`, in which Label Studio writes line ends as a backslash and n."""
        found = self.text[span[0] : span[1]] if 0 <= span[0] < span[1] else ""
        return found == name or NEWLINE.sub(r"\\n", found) == name

    def character(self, unit: int) -> int:
        """Return the index of the character that begins at a UTF-16 code unit; -1 if none does."""
        if not self.ends or unit == 0:
            return unit
        before = bisect_left(self.ends, unit)
        return before + 1 if before < len(self.ends) and self.ends[before] == unit else -1


def has_long(text: str) -> bool:
    """Return whether a text has a character of two UTF-16 code units."""
    return max(text, default="") > "\uffff"
