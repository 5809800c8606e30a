"""Edits of facts, with the questions that measure them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from json_rows.row_files import iterate_objects


@dataclass(frozen=True)
class Probe:
    """A question whose answer an edit must not change, or must imply (kind "hop").

    kind: "neighbour" (another subject, the same relation), "same_subject" (another relation), "other" or "hop".
    answer: None if the model's own answer before the edit must stay.
    """

    kind: str
    prompt: str
    answer: str | None


@dataclass(frozen=True)
class Edit:
    """A fact to change.

    prompt: a question with {} in place of the subject; the complete question if there is no subject. subject: "" if the
    edit has none. target: the new answer. location: "file:line". ground_truth: the old answer. rephrasings: other
    complete questions with the same answer.
    """

    prompt: str
    subject: str
    target: str
    location: str
    ground_truth: str | None = None
    rephrasings: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()

    @property
    def question(self) -> str:
        return self.prompt.replace("{}", self.subject, 1) if self.subject else self.prompt


def read_edits(path: str | Path, require_subject: bool = False) -> list[Edit]:
    """Return the edits of a JSON or JSONL file in the own format."""
    return [make_edit(row, place) for place, row in iterate_objects(path)]


def make_edit(row: Mapping[str, Any], location: str) -> Edit:
    """Return the edit of a row."""
    rephrase = row.get("rephrase") or ()
    return Edit(
        row["prompt"], row.get("subject") or "", row["target_new"], location, row.get("ground_truth"),
        (rephrase,) if isinstance(rephrase, str) else tuple(rephrase),
        make_probes(row.get("locality") or (), "other"), make_probes(row.get("portability") or (), "hop"),
    )  # fmt: skip


def make_probes(rows: Iterable[Mapping[str, Any]], kind: str) -> tuple[Probe, ...]:
    """Return the probes of an edit; kind: of rows without one."""
    return tuple(Probe(row.get("kind") or kind, row["prompt"], row.get("answer")) for row in rows)
