"""Data of bench_extraction.py: public data sets as examples of ie_build.py, and two systems without training.

A data set is prepared in one folder, with a file for each task (ner or re) and purpose, such as ner-test.jsonl:

    train      training sentences that are not in the test set, types in the order of TASK-types.json
    augmented  training sentences, each in ORDERS (or TARGET_ORDERS, OTHER_ORDERS) random orders of the types
    test       test sentences; the file `requests` has them as requests of /extract
    orders     at most ORDER_SENTENCES of the test sentences, each in --orders random orders of the types
"""

import json
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measurements import DATA, REPOSITORY, read_jsonl

ORDERS = 4  # examples for each training sentence, as in the second run line of ie_build.py
# The same if other domains are added: the 100 sentences of the target domain then give almost half of the examples.
TARGET_ORDERS, OTHER_ORDERS = 16, 2
ORDER_SENTENCES = 100  # test sentences that are asked in several orders
ORDER_SEED = 1  # seed of the orders of the test set; the training set has seed 0
SHOTS = 3
DOMAINS = ("ai", "music", "literature")
RENAMED = {"misc": "else"}  # the training set of CrossNER music has "else", its test set "misc"
WORD = re.compile(r"\w+|[^\w\s]")
CHARACTER = re.compile(r"\S")
Row = dict[str, Any]


class DataSet(NamedTuple):
    """Annotation files, relative to DATA, and options of ie_build.py for them."""

    train: str
    test: str
    format: str
    tasks: tuple[str, ...] = ("ner",)
    language: str = "en"
    domains: tuple[str, ...] = ()  # other domains of CrossNER, of which all sentences are further training examples


DATA_SETS = {
    "conll04": DataSet(
        "real/relations/conll04.train.txt", "real/relations/conll04.dev.txt", "conll04", tasks=("ner", "re")
    ),
    "wnut17": DataSet("real/ner/wnut17.train.conll", "real/ner/wnut17.dev.conll", "conll"),
    "weibo": DataSet("real/ner/weibo.train.conll", "real/ner/weibo.dev.conll", "conll", language="zh"),
    **{
        f"crossner-{domain}": DataSet(
            f"crossner/{domain}/train.json",
            f"crossner/{domain}/test.json",
            "json",
            domains=tuple(other for other in DOMAINS if other != domain),
        )
        for domain in DOMAINS
    },
}


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows to a file atomically; return its path."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return partial.replace(path)


def run_once(log: Path, script: str, options: Sequence[object], more: Sequence[str] = ()) -> str:
    """Run a command of the repository and return its output, which is kept in `log`; if the log exists, only read it.

    more: options after --. While the command runs, its output is in LOG.partial. Raises ValueError with its last line
    if it fails.
    """
    if not log.is_file():
        command = [sys.executable, str(REPOSITORY / script), *map(str, options), *(["--", *more] if more else [])]
        print(f"  {log.parent.name}/{log.stem}: {script}", flush=True)
        partial = log.with_name(f"{log.name}.partial")
        with partial.open("w", encoding="utf-8") as output:
            done = subprocess.run(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode:
            last = (partial.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ValueError(f"{shlex.join(command)} failed, see {partial}: {last}")
        partial.replace(log)
    return log.read_text(encoding="utf-8", errors="replace")


def option_words(**options: object) -> list[str]:
    """Return options as words; None and False are omitted, and True gives a flag."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def check_files(name: str) -> None:
    """Raise FileNotFoundError if a file of a data set is absent."""
    data = DATA_SETS[name]
    others = [f"crossner/{domain}/{part}.json" for domain in data.domains for part in ("train", "test")]
    for path in (data.train, data.test, *others):
        if not (DATA / path).is_file():
            raise FileNotFoundError(f"{DATA / path} does not exist; put the data there, or choose another --data")


def prepare(name: str, folder: Path, limit: int, orders: int) -> list[Path]:
    """Write the files of a data set to a folder, and return the training files, with the types in random orders.

    Sentences of the test set are removed from the training files. limit: number of test sentences; 0: all. orders:
    number of random orders of the types of the test set; 0: no such file.
    """
    data = DATA_SETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (annotation_file([path], folder / f"{part}-annotations.jsonl")
                   for part, path in (("train", data.train), ("test", data.test)))  # fmt: skip
    training, tested = [], set[str]()
    for task in data.tasks:
        shared = {"task": task, "format": data.format, "language": data.language}
        train_rows, schemas = folder / f"{task}-all-train.jsonl", folder / f"{task}-schemas.jsonl"
        build(train_rows, input=train, requests=schemas, **shared)
        types = folder / f"{task}-types.json"
        types.write_text(json.dumps(read_jsonl(schemas)[0]["schema"], ensure_ascii=False), encoding="utf-8")
        build_test_set(folder, task, limit, orders, input=test, schema=types, **shared)
        tested |= {row["input"] for row in read_jsonl(folder / f"{task}-all-test.jsonl")}
        removed = remove_sentences(train_rows, folder / f"{task}-train.jsonl", tested)
        print(f"{name} {task}: {removed} training sentences that are in the test set are removed", flush=True)
        orders_each = TARGET_ORDERS if data.domains else ORDERS
        training.append(build_augmented(folder, task, tested, orders_each, input=train, schema=types, **shared))
    for domain in data.domains:
        both = [f"crossner/{domain}/{part}.json" for part in ("train", "test")]
        annotations = annotation_file(both, folder / f"{domain}-annotations.jsonl")
        options = {"input": annotations, "language": data.language}
        training.append(build_augmented(folder, domain, tested, OTHER_ORDERS, **options))
    return training


def build_test_set(folder: Path, name: str, limit: int, orders: int, **options: object) -> None:
    """Write test, requests and orders, whose names begin with `name`; options: of ie_build.py."""
    whole, requests = folder / f"{name}-all-test.jsonl", folder / f"{name}-all-requests.jsonl"
    build(whole, requests=requests, **options)
    sample_rows(whole, folder / f"{name}-test.jsonl", limit)
    sample_rows(requests, folder / f"{name}-requests.jsonl", limit)
    if orders:
        ordered, most = folder / f"{name}-all-orders.jsonl", min(limit or ORDER_SENTENCES, ORDER_SENTENCES)
        build(ordered, order_augmentation=orders, seed=ORDER_SEED, **options)
        sample_rows(ordered, folder / f"{name}-orders.jsonl", most, orders)


def build_augmented(folder: Path, name: str, tested: set[str], orders: int, **options: object) -> Path:
    """Write and return a training file with each sentence in random orders of the types.

    tested: sentences that are removed. options: of ie_build.py.
    """
    whole, output = folder / f"{name}-all-augmented.jsonl", folder / f"{name}-augmented.jsonl"
    build(whole, order_augmentation=orders, **options)
    remove_sentences(whole, output, tested)
    return output


def remove_sentences(source: Path, target: Path, sentences: set[str]) -> int:
    """Write the rows whose input is not among the sentences; return the number of removed rows."""
    rows = read_jsonl(source)
    kept = [row for row in rows if row["input"] not in sentences]
    write_jsonl(target, kept)
    return len(rows) - len(kept)


def build(output: Path, **options: object) -> None:
    """Write examples with ie_build.py."""
    run_once(output.with_suffix(".log"), "finetune/ie_build.py", option_words(output=output, **options))


def annotation_file(paths: Sequence[str], output: Path) -> Path:
    """Return a file with the annotations of files in DATA: the only file, or JSON files joined and with RENAMED types.

    output: the file to write in the second case.
    """
    files = [DATA / path for path in paths]
    if files[0].suffix != ".json":
        return files[0]
    sentences = [sentence for file in files for sentence in json.loads(file.read_text(encoding="utf-8"))]
    for sentence in sentences:
        for entity in sentence["entity_list"]:
            entity["type"] = RENAMED.get(entity["type"], entity["type"])
    return write_jsonl(output, sentences)


def sample_rows(source: Path, target: Path, limit: int, rows_each: int = 1) -> None:
    """Write the rows of at most `limit` random sentences (0: of all), in their order; the same sentences every time.

    rows_each: consecutive rows of a sentence.
    """
    rows = read_jsonl(source)
    chosen = list(range(len(rows) // rows_each))
    if 0 < limit < len(chosen):
        chosen = sorted(random.Random(0).sample(chosen, limit))
    write_jsonl(target, [row for number in chosen for row in rows[number * rows_each : (number + 1) * rows_each]])


def names_of_training_set(rows: Sequence[Row], language: str) -> dict[tuple[str, ...], str]:
    """Return the most frequent type of each name in the answers of ner examples, by the words of the name."""
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for row in rows:
        for label, names in json.loads(row["output"]).items():
            for name in names:
                words = tuple(match[0] for match in pieces(name, language))
                counts.setdefault(words, Counter())[label] += 1
    return {words: labels.most_common(1)[0][0] for words, labels in counts.items() if words}


def pieces(text: str, language: str) -> list[re.Match[str]]:
    """Return the words and punctuation marks of a text, in Chinese its characters."""
    return list((CHARACTER if language == "zh" else WORD).finditer(text))


def dictionary_answer(text: str, names: dict[tuple[str, ...], str], longest: int, language: str) -> str:
    """Return the names that occur in a text as an answer; from left to right, the longest name is taken.

    longest: words of the longest name.
    """
    found: dict[str, dict[str, None]] = {}
    words, start = pieces(text, language), 0
    while start < len(words):
        sizes = range(min(longest, len(words) - start), 0, -1)
        keys = ((size, tuple(word[0] for word in words[start : start + size])) for size in sizes)
        size, key = next((each for each in keys if each[1] in names), (1, ()))
        if key:
            name = text[words[start].start() : words[start + size - 1].end()]
            found.setdefault(names[key], {})[name] = None
        start += size
    return json.dumps({label: list(each) for label, each in found.items()}, ensure_ascii=False)


def dictionary_rows(training: Sequence[Row], test: Sequence[Row], task: str, language: str) -> list[Row]:
    """Return the test rows with the predictions of the dictionary of the training set; it finds no relations."""
    if task != "ner":
        return [row | {"prediction": "{}"} for row in test]
    names = names_of_training_set(training, language)
    longest = max(map(len, names), default=0)
    return [row | {"prediction": dictionary_answer(row["input"], names, longest, language)} for row in test]


def rows_with_shots(training: Sequence[Row], test: Sequence[Row], seed: int) -> list[Row]:
    """Return each test row as a conversation that begins with SHOTS random training examples.

    Only examples that have items are drawn, unless fewer than SHOTS have any.
    """
    with_items = [row for row in training if any(json.loads(row["output"]).values())]
    enough = with_items if len(with_items) >= SHOTS else training
    turns: list[Row] = []
    for shot in random.Random(seed).sample(enough, SHOTS):
        turns += [question(shot), {"role": "assistant", "content": shot["output"]}]
    return [{"messages": [*turns, question(row)]} for row in test]


def question(row: Row) -> Row:
    """Return the user message of an example."""
    return {"role": "user", "content": row["instruction"], "input": row["input"]}
