"""Candidate rows of a selection, and filters that are applied in order. A rejected row gets no further scores."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from json_rows.instruction_rows import InstructionRow, messages_of
from tqdm import tqdm

SELECTION = "selection"  # key of the scores and reasons in a row


class Verdict(NamedTuple):
    """The decision of a filter on a row."""

    kept: bool
    score: float | str | None  # None if the row has no score
    reason: str


class Candidate:
    """A row and its verdicts.

    Attributes:
        number: the row's number in the input, from 1.
        question: instruction and input, or all user messages, separated by blank lines.
        answer: output, or all assistant messages.
        verdicts: name of the filter -> verdict.
        rejected_by: name of the filter that rejected the row, or "".
    """

    def __init__(self, number: int, row: InstructionRow) -> None:
        self.number, self.row = number, row
        messages = messages_of(row)
        asked = [text for m in messages if m["role"] == "user" for text in (m["content"], m.get("input")) if text]
        self.question = "\n\n".join(asked)
        self.answer = "\n\n".join(message["content"] for message in messages if message["role"] == "assistant")
        self.verdicts: dict[str, Verdict] = {}
        self.rejected_by = ""

    def add(self, name: str, verdict: Verdict) -> None:
        """Record a verdict."""
        self.verdicts[name] = verdict
        if not verdict.kept:
            self.rejected_by = name

    def output_row(self) -> dict[str, Any]:
        """Return the row with its scores and reasons, in a rejected row also with the name of the filter."""
        earlier = self.row.get(SELECTION)
        scores = {**earlier} if isinstance(earlier, dict) else {}
        for name, verdict in self.verdicts.items():
            score = round(verdict.score, 6) if isinstance(verdict.score, float) else verdict.score
            scores[name] = {"score": score, "reason": verdict.reason}
        rejection = {"rejected_by": self.rejected_by} if self.rejected_by else {}
        return {**self.row, SELECTION: scores, **rejection}


class RowFilter(NamedTuple):
    """A filter with its name.

    judge: returns the verdicts of candidates, in their order. If it yields them one at a time, the verdicts on the
    earlier candidates have been recorded by then.
    """

    name: str
    judge: Callable[[Sequence[Candidate]], Iterable[Verdict]]


def one_by_one(judge: Callable[[Candidate], Verdict]) -> Callable[[Sequence[Candidate]], Iterable[Verdict]]:
    """Return the `judge` of a filter that judges each candidate alone or by the earlier ones."""
    return lambda candidates: map(judge, candidates)


def apply_filters(candidates: Sequence[Candidate], filters: Iterable[RowFilter]) -> None:
    """Apply filters in order; each gets the rows that all earlier filters kept."""
    for row_filter in filters:
        left = [candidate for candidate in candidates if not candidate.rejected_by]
        bar = tqdm(total=len(left), desc=row_filter.name, unit="row", disable=None, leave=False)
        for candidate, verdict in zip(left, row_filter.judge(left), strict=True):
            candidate.add(row_filter.name, verdict)
            bar.update()
        bar.close()


def in_bounds(value: float, lowest: float, highest: float, what: str) -> Verdict:
    """Return the verdict on a value with a lower and an upper bound; an upper bound of 0 means no limit."""
    shown = f"{what} {value:.4g}"
    if value < lowest:
        return Verdict(False, value, f"{shown} is below {lowest:g}")
    if highest and value > highest:
        return Verdict(False, value, f"{shown} is above {highest:g}")
    return Verdict(True, value, shown)
