"""Compare the patterns of sentence_ends/ with ICU: speed, and precision and recall on hand-labelled texts.

    python benchmarks/bench_sentences.py
    python benchmarks/bench_sentences.py --megabytes 100 --rounds 15

ICU's sentence iterator (`pip install icu4py`) runs plain and with its list of abbreviations (`ss=standard`). Speed is
measured on the documents of data_path (../shared/data/corpus/en.jsonl and zh.jsonl) or, if a file is missing, on the
labelled texts; both are repeated or cut to `megabytes`. Each round runs every engine once, in rotating order. The
labelled texts are in tests/pretrain/labelled_sentences.txt; some rules of the patterns were written with knowledge of
these texts, ICU's rules were not. Prints JSON; engines are "patterns", "icu" and "icu_suppressions":

- mb_per_cpu_s: {en, zh: {engine: MB of UTF-8 text per CPU second, median over the rounds}};
- patterns_to_engine: {en, zh: {engine: the patterns' rate divided by the engine's, median over the rounds}};
- precision, recall, f1: {en, zh, mixed, code: {engine: share}};
- megabytes, rounds: the options.
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import accumulate, cycle
from pathlib import Path
from statistics import median
from typing import Any

from measurements import DATA, REPOSITORY, read_jsonl, rotated

sys.path.insert(0, str(REPOSITORY / "pretrain"))

from command_line.fire_commands import run

from sentence_ends.sentence_boundaries import sentence_ends

LABELS = REPOSITORY / "tests/pretrain/labelled_sentences.txt"
Finder = Callable[[str], list[int]]


def labelled(path: Path = LABELS) -> dict[str, list[tuple[str, set[int]]]]:
    """Return {kind: [(text, positions of sentence ends)]}, with positions as in `inner_ends`."""
    texts: dict[str, list[tuple[str, set[int]]]] = {}
    kind = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            kind = line[3:].split(":")[0]
        elif kind and line:
            sentences = line.replace("⏎", "\n").split("‖")
            text = "".join(sentences)
            texts.setdefault(kind, []).append((text, inner_ends(text, list(accumulate(map(len, sentences))))))
    return texts


def inner_ends(text: str, ends: list[int]) -> set[int]:
    """Return the sentence ends inside a text, each moved back to just after the last non-space character.

    Programs differ in whether the space between two sentences belongs to the first; the result does not depend on it.
    """
    return {end for end in (len(text[:end].rstrip()) for end in ends) if 0 < end < len(text.rstrip())}


def score(texts: list[tuple[str, set[int]]], finder: Finder) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the sentence ends that a finder returns."""
    found = [(inner_ends(text, finder(text)), labels) for text, labels in texts]
    correct = sum(len(ends & labels) for ends, labels in found)
    precision, recall = (correct / sum(map(len, side)) for side in zip(*found, strict=True))
    return precision, recall, 2 * precision * recall / (precision + recall)


def engines(kind: str) -> dict[str, Finder]:
    """Return the finders for texts of a kind; raises ValueError if ICU is not installed."""
    try:
        from icu4py.breakers import SentenceBreaker
    except ImportError:
        raise ValueError("icu4py is not installed; install it: pip install icu4py") from None
    locale = "zh" if kind == "zh" else "en"

    def icu(name: str) -> Finder:
        # Positions count UTF-16 units, which in the labelled texts equal characters. The speed does not depend on them.
        return lambda text: [end for _, end in SentenceBreaker(text, name).segments()]

    return {"patterns": sentence_ends, "icu": icu(locale), "icu_suppressions": icu(f"{locale}@ss=standard")}


def documents(data_path: Path, name: str, megabytes: float) -> list[str]:
    """Return the documents of <data_path>/<name>.jsonl, or the joined labelled texts, repeated to `megabytes`."""
    file = data_path / f"{name}.jsonl"
    if file.is_file():
        texts = [row["text"] for row in read_jsonl(file)]
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
    speeds = []
    for number in range(rounds):
        speed = {}
        for name in rotated(list(finders), number):
            begun = time.process_time()
            for text in texts:
                finders[name](text)
            speed[name] = megabytes / (time.process_time() - begun)
        speeds.append(speed)
    return speeds


def main(megabytes: float = 20, rounds: int = 7, data_path: str = "") -> None:
    """Measure the speed on `megabytes` of English and of Chinese text per round, then the scores on labelled texts."""
    folder = Path(data_path) if data_path else DATA / "corpus"
    measures = ("precision", "recall", "f1")
    result: dict[str, dict[str, Any]] = {name: {} for name in ("mb_per_cpu_s", "patterns_to_engine", *measures)}
    for corpus in ("en", "zh"):
        finders = engines(corpus)
        speeds = rates(documents(folder, corpus, megabytes), finders, rounds)
        result["mb_per_cpu_s"][corpus] = {name: round(median(speed[name] for speed in speeds), 1) for name in finders}
        result["patterns_to_engine"][corpus] = {
            name: round(median(speed["patterns"] / speed[name] for speed in speeds), 3) for name in finders
        }
    for kind, texts in labelled().items():
        scores = {name: score(texts, finder) for name, finder in engines(kind).items()}
        for index, measure in enumerate(measures):
            result[measure][kind] = {name: round(values[index], 3) for name, values in scores.items()}
    print(json.dumps(result | {"megabytes": megabytes, "rounds": rounds}))


if __name__ == "__main__":
    run(main)
