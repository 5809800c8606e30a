"""Write an HTML page of the rows with errors: the text with marked items, and a list of the items.

The page has no external resources. It is in English and Chinese; a button switches between them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from extraction_metrics.row_scores import ScoredRow
from text_language.language_detection import language_of
from tqdm import tqdm

from extraction_reports.confusion_picture import printable_xml
from extraction_reports.item_outcomes import CORRECT, MISSED, SPURIOUS, STATUSES, WRONG_TYPE, Outcome, row_outcomes
from extraction_reports.text_marks import Mark, Piece, Span, find_mention, text_pieces

MAX_CHARACTERS = 5000  # of a text that is shown; the rest is cut
MAX_ITEMS = 200  # items of a row that are shown
MAX_RAW = 1000  # characters of an answer that is not JSON
MAX_OPTIONS = 500  # types in the filter
LANE_PIXELS = 5
SYMBOLS = {CORRECT: "✓", WRONG_TYPE: "≠", MISSED: "−", SPURIOUS: "+"}
CHINESE = {CORRECT: "正确", WRONG_TYPE: "类型错误", MISSED: "遗漏", SPURIOUS: "多余"}
KINDS = {
    "entity": ("entity", "实体"), "triple": ("triple", "三元组"), "trigger": ("trigger", "触发词"),
    "argument": ("argument", "论元"),
}  # fmt: skip


class ErrorRow(NamedTuple):
    """A row with errors."""

    number: int  # position in the file, from 1
    row: ScoredRow
    outcomes: list[Outcome]
    parsed: bool


def both(english: str, chinese: str) -> str:
    """Return a text of the page in both languages; the style sheet shows one of them."""
    return f'<span lang="en">{english}</span><span lang="zh">{chinese}</span>'


def class_of(status: str) -> str:
    """Return the CSS class of a status."""
    return status.replace(" ", "-")


def error_rows(rows: Sequence[ScoredRow], parsed: Sequence[bool], limit: int) -> tuple[list[ErrorRow], int]:
    """Return the first `limit` rows with errors, and the number of all; parsed: whether each answer parses."""
    found: list[ErrorRow] = []
    number_of_rows = 0
    for number, (row, is_parsed) in enumerate(zip(tqdm(rows, desc="errors", disable=None), parsed, strict=True), 1):
        outcomes = row_outcomes(row)
        if not is_parsed or any(outcome.status != CORRECT for outcome in outcomes):
            number_of_rows += 1
            if len(found) < limit:
                found.append(
                    ErrorRow(number, row, sorted(outcomes, key=lambda each: each.status == CORRECT), is_parsed)
                )
    return found, number_of_rows


def page_html(rows: Sequence[ScoredRow], parsed: Sequence[bool], limit: int, name: str) -> str:
    """Return the page; name: of the predictions file; the other arguments as in `error_rows`."""
    shown, number = error_rows(rows, parsed, limit)
    labels = sorted({label for each in shown for outcome in each.outcomes for label in labels_of(outcome)})
    numbers = {label: at for at, label in enumerate(labels[:MAX_OPTIONS])}
    options = "".join(f'<option value="{at}">{printable_xml(label, 60)}</option>' for label, at in numbers.items())
    texts = " ".join(each.row.text[:200] for each in shown[:20] if each.row.text)
    summary = both(
        f"{printable_xml(name)}: {number} of {len(rows)} rows have errors; {len(shown)} are shown.",
        f"{printable_xml(name)}：{len(rows)}行中有{number}行有错误，显示{len(shown)}行。",
    )
    values = {
        "LANGUAGE": language_of(texts), "SUMMARY": summary, "OPTIONS": options, "LEGEND": legend(),
        "ROWS": "\n".join(article(each, numbers) for each in shown),
    }  # fmt: skip
    page = (Path(__file__).parent / "error_page.html").read_text(encoding="utf-8")
    parts = []
    for key, value in values.items():  # values are inserted once, so that their text is never taken for a placeholder
        before, _, page = page.partition(key)
        parts += [before, value]
    return "".join([*parts, page])


def legend() -> str:
    """Return the check boxes that explain the marks and show or hide them."""
    boxes = []
    for status in STATUSES[::-1]:
        style = f"background:var(--m-{class_of(status)})"
        boxes.append(
            f'<label class="{class_of(status)}"><input type="checkbox" data-status="{class_of(status)}"'
            f'{"" if status == CORRECT else " checked"}> <i class="sample" style="{style}"></i> '
            f"{SYMBOLS[status]} {both(status, CHINESE[status])}</label>"
        )
    return "\n".join(boxes)


def labels_of(outcome: Outcome) -> list[str]:
    """Return the types of an outcome without repetition."""
    return list(dict.fromkeys(label for label in (outcome.gold, outcome.predicted) if label))


def article(each: ErrorRow, numbers: dict[str, int]) -> str:
    """Return the element of a row; numbers: type -> its number in the filter."""
    outcomes = each.outcomes[:MAX_ITEMS]
    types = {label for outcome in each.outcomes for label in labels_of(outcome)}
    task = f" · {each.row.task}" if each.row.task else ""
    parts = [f'<article data-types="{type_numbers(types, numbers)}">']
    parts.append(f"<h2>{both(f'Row {each.number}', f'第{each.number}行')}{task}{order_note(each.row)}</h2>")
    if each.row.text is not None:
        parts.append(marked_text(each.row, outcomes, numbers))
    parts.append(f"<ul>{''.join(list_item(outcome, numbers) for outcome in outcomes)}</ul>")
    if len(each.outcomes) > MAX_ITEMS:
        more = len(each.outcomes) - MAX_ITEMS
        parts.append(f'<p class="note">{both(f"{more} more items", f"还有{more}项")}</p>')
    if not each.parsed:
        note = both("The answer does not have the required form:", "回答不符合格式：")
        parts.append(f'<p class="note">{note}</p><pre>{printable_xml(each.row.prediction, MAX_RAW)}</pre>')
    return "".join([*parts, "</article>"])


def order_note(row: ScoredRow) -> str:
    """Return the order of the types in a row, for its heading."""
    order = printable_xml(row.order, 20)
    return f" · {both(f'order {order}', f'顺序 {order}')}" if row.order else ""


def type_numbers(labels: set[str] | list[str], numbers: dict[str, int]) -> str:
    """Return the numbers of types in the filter, separated by spaces."""
    return " ".join(sorted(str(numbers[label]) for label in labels if label in numbers))


def outcome_types(outcome: Outcome) -> str:
    """Return the escaped type of an outcome, or the correct and the predicted type."""
    return " → ".join(printable_xml(label, 60) for label in labels_of(outcome))


def list_item(outcome: Outcome, numbers: dict[str, int]) -> str:
    """Return the list element of an outcome."""
    names = " → ".join(printable_xml(name, 300) for name in outcome.names)
    swapped = f" ({both('subject and object are swapped', '主体和客体颠倒')})" if outcome.inverted else ""
    status = f"{SYMBOLS[outcome.status]} {both(outcome.status, CHINESE[outcome.status])}"
    types = type_numbers(labels_of(outcome), numbers)
    return (
        f'<li class="{class_of(outcome.status)}" data-types="{types}"><b>{status}</b> '
        f"{both(*KINDS[outcome.kind])} <b>{outcome_types(outcome)}</b>: "
        f'<span class="names">{names}</span>{swapped}</li>'
    )


def outcome_marks(row: ScoredRow, outcomes: Sequence[Outcome], text: str) -> Iterator[Mark]:
    """Yield the marks of outcomes with names in the text; correct entities are marked at their annotated places."""
    annotated: dict[tuple[str, str], list[tuple[Span, ...]]] = {}
    for item in row.gold_spans.elements() if row.gold_spans else ():
        spans = tuple(
            (int(start), int(end)) for start, _, end in (part.partition(":") for part in item.content[1].split(","))
        )
        if all(0 <= start < end <= len(text) for start, end in spans):
            words = " ".join(" ".join(text[start:end] for start, end in spans).split())
            for name in {words, "".join(text[start:end] for start, end in spans)}:
                annotated.setdefault((item.label, name), []).append(spans)
    taken: dict[tuple[str, str], set[Span]] = {}
    for number, outcome in enumerate(outcomes):
        for name in outcome.names:
            places = annotated.get((outcome.gold, name), []) if outcome.kind == "entity" else []
            if places:
                yield Mark(places.pop(0), number)
                continue
            used = taken.setdefault((outcome.status, name), set())
            if (span := find_mention(text, name, used)) is not None:
                used.add(span)
                yield Mark((span,), number)


def marked_text(row: ScoredRow, outcomes: Sequence[Outcome], numbers: dict[str, int]) -> str:
    """Return the element of the text: its pieces, each above the lines of its marks, and a tag after each mark."""
    text = (row.text or "")[:MAX_CHARACTERS]
    parts, lanes = [], 0
    for piece in text_pieces(len(text), list(outcome_marks(row, outcomes, text))):
        lanes = max(lanes, *(lane + 1 for lane, _ in piece.marks), 0)
        parts.append(piece_html(printable_xml(text[piece.start : piece.end], MAX_CHARACTERS + 1), piece, outcomes))
        for mark in piece.ending:
            outcome = outcomes[mark.outcome]
            types = type_numbers(labels_of(outcome), numbers)
            tag = f"{SYMBOLS[outcome.status]} {outcome_types(outcome)}"
            parts.append(f'<span class="tag {class_of(outcome.status)}" data-types="{types}">{tag}</span>')
    if len(row.text or "") > MAX_CHARACTERS:
        parts.append(f' <span class="note">… {both("(cut)", "（截断）")}</span>')
    height = f"line-height:calc(1.7em + {lanes * LANE_PIXELS}px)"
    return f'<div class="text" style="{height}">{"".join(parts)}</div>'


def piece_html(content: str, piece: Piece, outcomes: Sequence[Outcome]) -> str:
    """Return a piece of text with a line below it for each mark; content: the escaped text."""
    if not piece.marks:
        return content
    images = ",".join(f"var(--m-{class_of(outcomes[mark.outcome].status)})" for _, mark in piece.marks)
    lanes = [lane * LANE_PIXELS for lane, _ in piece.marks]
    depth = max(lanes) + LANE_PIXELS
    places = ",".join(f"0 calc(100% - {depth - LANE_PIXELS - lane}px)" for lane in lanes)
    style = f"background-image:{images};background-position:{places};background-size:100% 3px;padding-bottom:{depth}px"
    return f'<span style="{style}">{content}</span>'
