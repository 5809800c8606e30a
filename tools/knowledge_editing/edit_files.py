"""Read edits of facts, with the questions that measure them, from files in our own and in published formats.

| format | keys of a row |
| --- | --- |
| own | `prompt`, `target_new`, optional `subject`, `ground_truth`, `rephrase`, `locality`, `portability` |
| CounterFact, flat | `prompt`, `target_new`, `subject`, `rephrase_prompt`, `locality_prompt`, `locality_ground_truth` |
| CounterFact, original | `requested_rewrite`, `paraphrase_prompts`, `neighborhood_prompts` |
| zsRE | `src`, `alt` (new answer), `subject`, `rephrase`, `loc`, `loc_ans` |
| KnowEdit | `prompt`, `target_new`, `subject`, `portability` and `locality`: {name: [{`prompt`, `ground_truth`}]} |
| QAEdit | `prompt`, `target`, `subject`, `rephrase`, `locality`: [{`loc`, `loc_ans`}] |

The formats are those of https://github.com/kmeng01/rome, https://github.com/zjunlp/EasyEdit and
https://github.com/WanliYoung/Revisit-Editing-Evaluation. They are recognised row by row.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from json_rows.row_files import iterate_objects

NEIGHBOUR, SAME_SUBJECT, OTHER, HOP = "neighbour", "same_subject", "other", "hop"
KINDS = (NEIGHBOUR, SAME_SUBJECT, OTHER, HOP)
# Names of groups of questions in KnowEdit -> kind; all others are "other".
GROUPS = {"Relation_Specificity": SAME_SUBJECT, "Forgetfulness": SAME_SUBJECT, "neighborhood": NEIGHBOUR}


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
    """Return the edits of a JSON or JSONL file.

    require_subject: raise an error for a subject that is not in its prompt; otherwise such an edit has no subject.
    Raises ValueError with file and line for a row without prompt or target.
    """
    edits = [make_edit(row, location, require_subject) for location, row in iterate_objects(path)]
    if not edits:
        raise ValueError(f"{path} has no edits; write one JSON object with prompt, subject and target_new per line")
    return edits


def edit_row(edit: Edit) -> dict[str, Any]:
    """Return an edit as a row of our own format."""
    row: dict[str, Any] = {"prompt": edit.prompt, "subject": edit.subject, "target_new": edit.target}
    row |= {"ground_truth": edit.ground_truth} if edit.ground_truth else {}
    row |= {"rephrase": list(edit.rephrasings)} if edit.rephrasings else {}
    for name, probes in (("locality", edit.locality), ("portability", edit.portability)):
        row |= {name: [asdict(probe) for probe in probes]} if probes else {}
    return row


def consistent_edits(edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits without exact repetitions, which are reported on stderr.

    Raises ValueError, which names both places, for two edits with the same question and different targets.
    """
    first: dict[str, Edit] = {}
    for edit in edits:
        earlier = first.setdefault(edit.question, edit)
        if earlier.target != edit.target:
            raise ValueError(
                f"{edit.location} contradicts {earlier.location}: {edit.question!r} has the targets {edit.target!r} "
                f"and {earlier.target!r}; remove one of the two"
            )
    if repeated := len(edits) - len(first):
        print(f"notice: {repeated} repeated edits are omitted", file=sys.stderr)
    return list(first.values())


def make_edit(row: Mapping[str, Any], location: str, require_subject: bool = False) -> Edit:
    """Return the edit of a row in one of the formats; ValueError with its location if it is not one."""
    if isinstance(rewrite := row.get("requested_rewrite"), Mapping):
        return _original_counterfact(row, rewrite, location)
    prompt = _text(row, ("prompt", "src"), location)
    target = _text(row, ("target_new", "target", "alt"), location)
    subject = row.get("subject") or ""
    if not isinstance(subject, str):
        raise ValueError(f"{location}: the subject is not a text; correct it, or leave it out")
    return Edit(
        *_split_prompt(prompt, subject, location, require_subject), target, location,
        _optional_text(row, "ground_truth"), tuple(_texts(row.get("rephrase", row.get("rephrase_prompt")))),
        tuple(_probes(row, location)), tuple(_grouped(row.get("portability"), HOP, location)),
    )  # fmt: skip


def _split_prompt(prompt: str, subject: str, location: str, require_subject: bool) -> tuple[str, str]:
    """Return the prompt with {} in place of the subject, and the subject as the prompt writes it.

    Returns the complete prompt and "" for an edit without subject.
    """
    if not subject:
        return prompt, ""
    if prompt.count("{}") == 1:
        return prompt, subject
    start = prompt.find(subject)
    start = prompt.lower().find(subject.lower()) if start < 0 else start
    if start >= 0 and len(prompt.lower()) == len(prompt):
        written = prompt[start : start + len(subject)]
        return f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}", written
    if require_subject:
        raise ValueError(
            f"{location}: the subject {subject!r} is not in the prompt {prompt!r}; correct one of them, or write {{}} "
            "in the prompt where the subject stands"
        )
    return prompt, ""


def _original_counterfact(row: Mapping[str, Any], rewrite: Mapping[str, Any], location: str) -> Edit:
    """Return the edit of a row of CounterFact as published."""
    try:
        return Edit(
            rewrite["prompt"], rewrite["subject"], rewrite["target_new"]["str"], location,
            rewrite.get("target_true", {}).get("str"), tuple(_texts(row.get("paraphrase_prompts"))),
            tuple(Probe(NEIGHBOUR, prompt, None) for prompt in _texts(row.get("neighborhood_prompts"))),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{location}: requested_rewrite has no prompt, subject or target_new; download it again"
        ) from None


def _probes(row: Mapping[str, Any], location: str) -> Iterator[Probe]:
    """Yield the questions of a row whose answers must stay."""
    if isinstance(prompt := row.get("locality_prompt"), str):
        yield Probe(NEIGHBOUR, prompt, _optional_text(row, "locality_ground_truth"))
    if isinstance(prompt := row.get("loc"), str):
        yield Probe(OTHER, prompt.removeprefix("nq question: "), _optional_text(row, "loc_ans"))
    yield from _grouped(row.get("locality"), OTHER, location)


def _grouped(value: Any, kind: str, location: str) -> Iterator[Probe]:
    """Yield questions from a list of them, or from a table of such lists.

    kind: of questions that do not state their own.
    """
    groups = value if isinstance(value, Mapping) else {"": value or []}
    for name, rows in groups.items():
        for row in rows if isinstance(rows, Sequence) and not isinstance(rows, str) else [rows]:
            try:
                prompt = row["prompt"] if "prompt" in row else row["loc"]
                answer = next((row[key] for key in ("answer", "ground_truth", "loc_ans") if row.get(key)), None)
                own = row.get("kind") or (GROUPS.get(str(name), kind) if kind != HOP else HOP)
                first = next(iter(_texts(answer)), None)
            except (KeyError, TypeError, AttributeError):
                raise ValueError(
                    f'{location}: a question of the edit is not {{"prompt", "answer"}}; correct it'
                ) from None
            if own not in KINDS:
                raise ValueError(
                    f"{location}: the kind {own!r} of a question is unknown; use one of {', '.join(KINDS)}"
                )
            yield Probe(own, prompt, first)


def _texts(value: Any) -> list[str]:
    """Return the texts of a text, of a list of texts, or of a list of lists (alternatives: the first of each)."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence):
        return []
    return [found for each in value if (found := each if isinstance(each, str) else next(iter(_texts(each)), ""))]


def _text(row: Mapping[str, Any], keys: Sequence[str], location: str) -> str:
    """Return the first non-empty text under one of the keys; ValueError if there is none."""
    for key in keys:
        for text in _texts(row.get(key)):
            if text.strip():
                return text
    raise ValueError(f"{location}: the edit has no text under {' or '.join(keys)}; write one")


def _optional_text(row: Mapping[str, Any], key: str) -> str | None:
    return next((text for text in _texts(row.get(key)) if text), None)
