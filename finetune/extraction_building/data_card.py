"""Count the rows of a build, and write the counts as a data card in Markdown."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from extraction_building.task_items import Item

PERCENTILES = (5, 25, 50, 75, 95)
BAR = 40  # characters of the longest bar in a histogram


class BuildCounts:
    """Counts of texts, rows, items and types, and histograms of lengths in characters.

    Attributes:
        texts: language -> texts. rows, empty_rows: rows, and rows without an item. items: distinct items of all texts.
        repeated: entities and triples that repeat one of the same text. without_items, without_rows: texts with none.
        text_lengths, prompt_lengths, answer_lengths: language -> length -> number of texts or rows.
        asked, stated: language -> schema entry -> rows that ask for it; rows that also have an item of it.
    """

    def __init__(self) -> None:
        self.texts: Counter[str] = Counter()
        self.rows = self.empty_rows = self.items = self.repeated = self.without_items = self.without_rows = 0
        self.text_lengths: dict[str, Counter[int]] = defaultdict(Counter)
        self.prompt_lengths: dict[str, Counter[int]] = defaultdict(Counter)
        self.answer_lengths: dict[str, Counter[int]] = defaultdict(Counter)
        self.asked: dict[str, Counter[int]] = defaultdict(Counter)
        self.stated: dict[str, Counter[int]] = defaultdict(Counter)

    def add_row(
        self, language: str, row: Mapping[str, Any], batch: Sequence[int], items: Mapping[int, Sequence[Item]]
    ) -> None:
        """Count a row that asks for the entries of `batch`; items: entry -> items of the text."""
        stated = [number for number in batch if items.get(number)]
        self.rows += 1
        self.empty_rows += not stated
        self.asked[language].update(batch)
        self.stated[language].update(stated)
        self.prompt_lengths[language][len(row["instruction"]) + len(row.get("input", ""))] += 1
        self.answer_lengths[language][len(row["output"])] += 1

    def add_text(self, language: str, text: str, rows: int, items: int, distinct: int) -> None:
        """Count a text. items: number of items that fit the schema; distinct: number of distinct ones among them."""
        self.texts[language] += 1
        self.text_lengths[language][len(text)] += 1
        self.without_items += not items
        self.without_rows += not rows
        self.items += distinct
        self.repeated += items - distinct


def percentile(lengths: Counter[int], percent: float) -> int:
    """Return the smallest length that at least `percent` % of the texts or rows do not exceed; 50: the low median."""
    needed, seen = max(1, -(-lengths.total() * percent // 100)), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= needed:
            return length
    return 0


def histogram(lengths: Counter[int]) -> list[str]:
    """Return a text histogram whose bins double in width: 16-31, 32-63, …"""
    bins = Counter[int]()
    for length, number in lengths.items():
        bins[length.bit_length()] += number
    if not bins:
        return []
    most, widest = max(bins.values()), max(map(len, map(str, bins.values())))
    lines = []
    for exponent in range(min(bins), max(bins) + 1):
        low, high = (1 << exponent) >> 1, (1 << exponent) - 1
        number = bins[exponent]
        bar = "#" * -(-number * BAR // most)
        lines.append(f"{f'{low}-{high}':>15} {number:>{widest}} {bar}".rstrip())
    return lines


def file_hashes(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, SHA-256) of files, and of the files of folders."""
    for path in paths:
        files = [Path(path)] if Path(path).is_file() else sorted(file for file in Path(path).rglob("*"))
        for each in files:
            if each.is_file():
                with each.open("rb") as file:
                    yield str(each), hashlib.file_digest(file, "sha256").hexdigest()


def card_lines(
    title: str,
    counts: BuildCounts,
    labels: Mapping[str, Sequence[str]],
    options: Mapping[str, Any],
    files: Iterable[str],
    problems: str,
    problem_lines: Iterable[str],
) -> Iterator[str]:
    """Yield the lines of a data card.

    labels: language -> labels of the schema. options: name -> value. files: the input files. problems: counts of the
    items that cannot be used, as text.
    """
    languages = ", ".join(f"{language} {number}" for language, number in counts.texts.items())
    yield from (f"# Data card of {title}", "", *table(
        ("", ""),
        [
            ("task, style, split", ", ".join(str(options.get(name, "")) for name in ("task", "style", "split"))),
            ("texts", f"{counts.texts.total()} ({languages})"),
            ("texts without an item", counts.without_items),
            ("texts without a row", counts.without_rows),
            ("rows", counts.rows),
            ("rows with an empty answer", f"{counts.empty_rows} ({percent(counts.empty_rows, counts.rows)})"),
            ("items", counts.items),
            ("items repeated in one text", counts.repeated),
            ("items that cannot be used", problems),
        ],
    ))  # fmt: skip
    yield from ("", "## Lengths in characters", "")
    measures = {
        "text": counts.text_lengths,
        "prompt (instruction and input)": counts.prompt_lengths,
        "answer": counts.answer_lengths,
    }
    yield from table(
        ("", "language", "shortest", *(f"{percent}%" for percent in PERCENTILES), "longest"),
        [
            (name, language, min(lengths), *(percentile(lengths, percent) for percent in PERCENTILES), max(lengths))
            for name, by_language in measures.items()
            for language, lengths in by_language.items()
        ],
    )
    for name, by_language in measures.items():
        joined = sum(by_language.values(), Counter[int]())
        yield from ("", f"Number by length of the {name}:", "", "```text", *histogram(joined), "```")
    yield from (
        "",
        "## Types",
        "",
        "Rows that ask for a type: with an item of it (positive) and without (negative).",
        "",
    )
    yield from table(
        ("language", "type", "positive", "negative"),
        [
            (language, label, counts.stated[language][number], asked[number] - counts.stated[language][number])
            for language, asked in counts.asked.items()
            for number, label in enumerate(labels[language])
        ],
    )
    yield from ("", "## Source files", "", *table(("file", "SHA-256"), list(file_hashes(files))))
    yield from ("", "## Options", "", *table(("option", "value"), list(options.items())))
    yield from ("", "## Items that cannot be used", "", f"{problems}.")
    is_first = True
    for line in problem_lines:
        if is_first:
            yield from ("", "~~~~text")
        is_first = False
        yield line
    if not is_first:
        yield "~~~~"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell(value) for value in line) + " |" for line in lines]


def cell(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    return " ".join(str(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def percent(part: int, whole: int) -> str:
    """Return a share as text."""
    return f"{100 * part / whole:.1f}%" if whole else "0%"
