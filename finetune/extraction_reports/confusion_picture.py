"""Draw confusions as an SVG picture: correct types in rows, predicted types in columns."""

from collections import Counter
from html import escape

from extraction_reports.item_outcomes import MISSED, SPURIOUS

MAX_TYPES = 30  # most frequent types that are drawn
CELL, LABEL_WIDTH, HEADER, MARGIN = 34, 190, 150, 20  # pixels
LABEL_CHARACTERS = 24
RIGHT_COLOUR, WRONG_COLOUR = "#1f6fb2", "#c2410c"
Confusions = dict[str, dict[str, int]]


def printable_xml(text: str, characters: int = 1000) -> str:
    """Return text escaped for XML and HTML, cut to a number of characters; invalid characters become U+FFFD."""
    text = text if len(text) <= characters else f"{text[: characters - 1]}…"
    valid = "".join(
        each
        if each in "\t\n\r" or " " <= each < "\ud800" or "\ue000" <= each < "\ufffe" or each > "\uffff"
        else "\ufffd"
        for each in text
    )
    return escape(valid)


def drawn_types(table: Confusions) -> tuple[list[str], int]:
    """Return the most frequent types, the most frequent first, and the number of all types."""
    totals = Counter[str]()
    for gold, row in table.items():
        for predicted, number in row.items():
            totals[gold] += number
            totals[predicted] += number
    del totals[MISSED], totals[SPURIOUS]
    ordered = sorted(totals, key=lambda name: (-totals[name], name))
    return ordered[:MAX_TYPES], len(ordered)


def confusion_svg(confusions: dict[str, Confusions]) -> str:
    """Return an SVG document with a table for each kind of items.

    confusions: the result of item_outcomes.confusions. Each cell shows its number; the larger its share of the row, the
    darker its colour: blue on the diagonal, orange elsewhere.
    """
    parts, top, width = [], MARGIN, 0
    for kind, table in confusions.items():
        types, number = drawn_types(table)
        columns = len(types) + 1
        note = f"{kind}: {number} type{'s' * (number != 1)}"
        note += f", the {len(types)} most frequent are drawn" if number > len(types) else ""
        parts += kind_cells(table, types, note, top)
        top += HEADER + columns * CELL + MARGIN
        width = max(width, LABEL_WIDTH + columns * CELL + 2 * MARGIN, 8 * len(note) + 2 * MARGIN)
    height = top + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(width, 320)}" height="{height}" '
        f'viewBox="0 0 {max(width, 320)} {height}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *(parts or ['<text x="20" y="40">no items</text>']), "</svg>"]) + "\n"


def kind_cells(table: Confusions, types: list[str], note: str, top: int) -> list[str]:
    """Return the elements of the table of one kind of items, whose upper edge is at `top`."""
    rows, columns = [*types, SPURIOUS], [*types, MISSED]
    left, first = MARGIN + LABEL_WIDTH, top + HEADER
    parts = [f'<text x="{MARGIN}" y="{top + 14}" font-size="14" font-weight="bold">{printable_xml(note)}</text>']
    parts.append(f'<text x="{MARGIN}" y="{top + 34}" fill="#555">rows: correct type, columns: predicted type</text>')
    for at, name in enumerate(columns):
        x, y = left + at * CELL + CELL // 2 + 4, first - 6
        parts.append(label(name, f'transform="translate({x},{y}) rotate(-50)"', name == MISSED and at == len(types)))
    for at, gold in enumerate(rows):
        y, is_extra = first + at * CELL, at == len(types)
        parts.append(label(gold, f'x="{left - 8}" y="{y + CELL // 2 + 4}" text-anchor="end"', is_extra))
        total = sum(table.get(gold, {}).values()) or 1
        for column, predicted in enumerate(columns):
            number = table.get(gold, {}).get(predicted, 0)
            if is_extra and column == len(types):
                continue
            parts += cell(left + column * CELL, y, number, number / total, gold == predicted)
    return parts


def label(name: str, attributes: str, is_extra: bool) -> str:
    """Return a text element with a type, cut to LABEL_CHARACTERS; the whole type is its tooltip."""
    style = ' font-style="italic" fill="#555"' if is_extra else ""
    return (
        f"<text {attributes}{style}><title>{printable_xml(name)}</title>{printable_xml(name, LABEL_CHARACTERS)}</text>"
    )


def cell(x: int, y: int, number: int, share: float, is_right: bool) -> list[str]:
    """Return the elements of a cell; share: of its row."""
    colour = RIGHT_COLOUR if is_right else WRONG_COLOUR
    size = f'x="{x}" y="{y}" width="{CELL}" height="{CELL}"'
    if not number:
        return [f'<rect {size} fill="none" stroke="#e5e5e5"/>']
    ink = "#fff" if share > 0.55 else "#111"
    text = str(number) if number < 10_000 else f"{number // 1000}k"
    return [
        f'<rect {size} fill="{colour}" fill-opacity="{0.12 + 0.88 * share:.3f}" stroke="#e5e5e5"/>',
        f'<text x="{x + CELL // 2}" y="{y + CELL // 2 + 4}" text-anchor="middle" fill="{ink}">{text}</text>',
    ]
