"""Compare the patterns of sentence_ends/ with ICU: speed, and precision and recall on hand-labelled texts.

    python benchmarks/bench_sentences.py
    python benchmarks/bench_sentences.py --megabytes 100 --rounds 15

ICU's sentence iterator (`pip install icu4py`) runs plain and with its list of abbreviations (`ss=standard`); its values
are null if it is not installed. Speed is measured on the documents of data_path (../shared/data/corpus/en.jsonl and
zh.jsonl), or else on the labelled texts, repeated; the engines alternate in every round. The labelled texts are in
tests/pretrain/labelled_sentences.txt; some of the pattern's rules were written with these texts in view, ICU's were
not. "auto" is the pattern for any language, "language" the pattern for the text's language. The last line is JSON:

- mb_per_cpu_s: {en, zh: {engine: MB of UTF-8 text per CPU second, median over the rounds}};
- vs_icu, vs_icu_suppressions: {en, zh: auto's rate divided by theirs, median over the rounds};
- precision, recall, f1: {en, zh, mixed, code: {engine: share}}; mixed texts always use auto.
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import accumulate, cycle
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "pretrain"))

from command_line.fire_commands import run  # noqa: E402

from sentence_ends.sentence_boundaries import sentence_ends  # noqa: E402

LABELS = REPOSITORY / "tests/pretrain/labelled_sentences.txt"
LANGUAGE = {"en": "en", "zh": "zh", "mixed": "auto", "code": "code"}  # kind of labelled text -> language
CORPORA = ("en", "zh")
Finder = Callable[[str], list[int]]


# --- labels -----------------------------------------------------------------------------------------------------------


def labelled(path: Path = LABELS) -> dict[str, list[tuple[str, set[int]]]]:
    """Return {kind: [(text, positions of sentence ends)]}, with positions as in `inner`."""
    found: dict[str, list[tuple[str, set[int]]]] = {kind: [] for kind in LANGUAGE}
    kind = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            kind = line[3:].split(":")[0]
        elif kind and line:
            sentences = line.replace("⏎", "\n").split("‖")
            text = "".join(sentences)
            found[kind].append((text, inner(text, list(accumulate(map(len, sentences))))))
    return found


def inner(text: str, ends: list[int]) -> set[int]:
    """Return the sentence ends inside a text, each moved back to just after the last non-space character.

    Programs differ in whether the space between two sentences belongs to the first; the result does not depend on it.
    """
    return {end for end in (len(text[:end].rstrip()) for end in ends) if 0 < end < len(text.rstrip())}


def score(texts: list[tuple[str, set[int]]], finder: Finder) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the sentence ends that a finder returns."""
    found = [inner(text, finder(text)) for text, _ in texts]
    right = sum(len(ends & labels) for ends, (_, labels) in zip(found, texts, strict=True))
    precision, recall = right / sum(map(len, found)), right / sum(len(labels) for _, labels in texts)
    return precision, recall, 2 * precision * recall / (precision + recall)


# --- engines ----------------------------------------------------------------------------------------------------------


def engines(language: str) -> dict[str, Finder]:
    """Return the finders for texts of a language, with ICU's if it is installed."""
    found: dict[str, Finder] = {
        "auto": lambda text: sentence_ends(text, "auto"),
        "language": lambda text: sentence_ends(text, language),
    }
    try:
        from icu4py.breakers import SentenceBreaker
    except ImportError:
        return found
    locale = "zh" if language == "zh" else "en"

    def icu(name: str) -> Finder:
        # Positions are UTF-16 units: the same as characters in the labelled texts, and for speed they do not matter.
        return lambda text: [end for _, end in SentenceBreaker(text, name).segments()]

    return found | {"icu": icu(locale), "icu_suppressions": icu(f"{locale}@ss=standard")}


def documents(data_path: Path, name: str, megabytes: float) -> list[str]:
    """Return the documents of <data_path>/<name>.jsonl, or the joined labelled texts, repeated to `megabytes`."""
    file = data_path / f"{name}.jsonl"
    if file.is_file():
        texts = [json.loads(line)["text"] for line in file.open(encoding="utf-8")]
    else:
        texts = ["\n".join(text for text, _ in labelled()[name])]
    chosen, size = [], 0
    for text in cycle(texts):
        chosen.append(text)
        size += len(text.encode())
        if size >= megabytes * 1e6:
            break
    return chosen


def rates(texts: list[str], finders: dict[str, Finder], rounds: int) -> list[dict[str, float]]:
    """Return MB per CPU second of each finder, by round; the order of finders rotates."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rows, names = [], list(finders)
    for number in range(rounds):
        row = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.process_time()
            for text in texts:
                finders[name](text)
            row[name] = megabytes / (time.process_time() - begun)
        rows.append(row)
    return rows


# --- the report -------------------------------------------------------------------------------------------------------


def main(megabytes: float = 20, rounds: int = 7, data_path: str = "") -> None:
    """Measure the speed on `megabytes` of English and of Chinese text per round, then the scores on labelled texts."""
    if megabytes <= 0 or rounds < 1:
        raise ValueError(f"--megabytes {megabytes} --rounds {rounds}: give more than nothing of both")
    folder = Path(data_path) if data_path else REPOSITORY.parent / "shared/data/corpus"
    columns = ["auto", "language", "icu", "icu_suppressions"]
    result: dict[str, dict] = {name: {} for name in ("mb_per_cpu_s", "vs_icu", "vs_icu_suppressions")}
    result |= {name: {} for name in ("precision", "recall", "f1")}

    print(f"{'':24}" + "".join(f"{name:>18}" for name in columns))
    for corpus in CORPORA:
        rows = rates(documents(folder, corpus, megabytes), engines(corpus), rounds)
        speed = {name: median(row[name] for row in rows) if name in rows[0] else None for name in columns}
        result["mb_per_cpu_s"][corpus] = rounded(speed)
        for name in ("icu", "icu_suppressions"):
            ratio = median(row["auto"] / row[name] for row in rows) if name in rows[0] else None
            result[f"vs_{name}"] |= rounded({corpus: ratio})
        print_row(f"{corpus}, MB a CPU second", speed, ".1f")
    for kind, texts in labelled().items():
        scores = {name: score(texts, finder) for name, finder in engines(LANGUAGE[kind]).items()}
        for at, measure in enumerate(("precision", "recall", "f1")):
            values = {name: scores[name][at] if name in scores else None for name in columns}
            result[measure][kind] = rounded(values)
            print_row(f"{kind}, {measure}", values, ".3f")
    if None in result["vs_icu"].values():
        print("ICU is not installed; to compare with it: pip install icu4py")
    print(json.dumps(result | {"megabytes": megabytes, "rounds": rounds}))


def rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    """Round to three decimals, more than the precision of the clock."""
    return {name: value if value is None else round(value, 3) for name, value in values.items()}


def print_row(title: str, values: dict[str, float | None], form: str) -> None:
    """Print one line of the table, with a dash for an engine that is not installed."""
    print(f"{title:24}" + "".join(f"{'-' if value is None else format(value, form):>18}" for value in values.values()))


if __name__ == "__main__":
    run(main)
