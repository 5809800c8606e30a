"""The systems of bench_extraction.py: tuning, answers with and without the grammar, and scores, as commands run once.

Every run of a system has a folder SYSTEM-SEED in the data set's folder, with a log of each finished command:

    adapter or model, merged                         the tuned model, and the folder that the server loads
    ner-test, ner-orders, ner-grammar (.jsonl)       predictions; -scores.json beside them: the output of ie_eval.py

A command whose log exists is not run again. An unfinished tuning run is resumed; any other folder that
an unfinished command left is removed first.
"""

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from extraction_data import DATA_SETS, Row, dictionary_rows, option_words, rows_with_shots, run_once, write_jsonl
from measurements import read_jsonl

TUNED = ("lora", "full")
SYSTEMS = ("dictionary", "zero_shot", "three_shot", *TUNED)
SEEDED = ("three_shot", *TUNED)  # the others give the same result for every seed
KINDS = {"ner": "entity", "re": "triple"}  # task -> its scores in the output of ie_eval.py
TIMED_STEPS = 5
# Options of finetune.py, unless given after --. Alpaca (Taori et al. 2023) was tuned in full with the rate 2e-5.
TUNING = {
    "batch_size": 32, "micro_batch_size": 4, "cutoff_len": 1024, "report_to": "none", "save_steps": 0.1,
    "save_total_limit": 1,
}  # fmt: skip
LEARNING_RATES = {"lora": 3e-4, "full": 2e-5}
COMPLETE, CHECKPOINT = "checkpoint-*/complete.json", re.compile(r"checkpoint-(\d+)$")
SECONDS_A_ROW = re.compile(r"\((\d+\.\d+) s a row\)")


class Benchmark(NamedTuple):
    """Settings and data that the runs of all systems share."""

    base: Path
    data_set: str
    folder: Path  # of the data set in the scratch folder
    training: list[Path]  # training files, with the types in random orders
    minutes: float
    max_new_tokens: int
    bf16: bool
    orders: int
    grammar: bool
    tuning: Sequence[str]  # options of finetune.py after --

    @property
    def data(self) -> Path:
        """The folder of the prepared data."""
        return self.folder / "data"

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a prepared file, such as ner-test."""
        return read_jsonl(self.data / f"{name}.jsonl")


class Model(NamedTuple):
    """A model to answer with. adapter: a folder or ""; training: figures of its tuning."""

    folder: Path
    adapter: str = ""
    training: dict[str, float | None] | None = None


def run_system(bench: Benchmark, system: str, seed: int) -> dict[str, Any]:
    """Run a system once and return its figures: training, if it was tuned, and those of each task."""
    folder = bench.folder / f"{system}-{seed}"
    folder.mkdir(exist_ok=True)
    model = tuned_model(bench, system, seed, folder) if system in TUNED else Model(bench.base)
    tasks = DATA_SETS[bench.data_set].tasks
    result: dict[str, Any] = {"seed": seed} | ({"training": model.training} if model.training else {})
    for task in tasks:
        result[task] = test_figures(bench, system, seed, model, folder, task)
    if system in TUNED or system == "zero_shot":
        for task in tasks if bench.orders else ():
            seconds = answer(bench, model, bench.data / f"{task}-orders.jsonl", folder / f"{task}-orders.jsonl")
            scores = score(folder / f"{task}-orders.jsonl", task, seconds)
            result[task]["orders"] = scores["orders"]
        if bench.grammar:
            for task, figures in grammar_figures(bench, model, folder, tasks).items():
                result[task]["grammar"] = figures
    return result


def test_figures(bench: Benchmark, system: str, seed: int, model: Model, folder: Path, task: str) -> dict[str, Any]:
    """Write the predictions of a system for the test set of a task, and return its figures."""
    test, predictions = bench.data / f"{task}-test.jsonl", folder / f"{task}-test.jsonl"
    if system == "dictionary":
        language = DATA_SETS[bench.data_set].language
        rows = dictionary_rows(bench.rows(f"{task}-train"), bench.rows(f"{task}-test"), task, language)
        write_jsonl(predictions, rows)
        return score(predictions, task)
    if system != "three_shot":
        return score(predictions, task, answer(bench, model, test, predictions))
    asked, answered = folder / f"{task}-shots.jsonl", folder / f"{task}-answers.jsonl"
    write_jsonl(asked, rows_with_shots(bench.rows(f"{task}-train"), bench.rows(f"{task}-test"), seed))
    seconds = answer(bench, model, asked, answered)
    pairs = zip(read_jsonl(test), read_jsonl(answered), strict=True)
    # Score the rows of the test set, not the conversations: a name copied from the examples is not in the text.
    keys = ("prediction", "finish_reason")
    write_jsonl(predictions, [row | {key: other[key] for key in keys} for row, other in pairs])
    return score(predictions, task, seconds)


def answer(bench: Benchmark, model: Model, rows: Path, output: Path) -> float:
    """Answer rows with ie_run.py; return the seconds of generation for each row."""
    options = option_words(
        base_model=model.folder, lora_weights=model.adapter or None, data_path=rows, output=output,
        max_new_tokens=bench.max_new_tokens, bf16=bench.bf16,
    )  # fmt: skip
    found = SECONDS_A_ROW.findall(run_once(output.with_suffix(".log"), "finetune/ie_run.py", options))
    return float(found[-1])


def score(predictions: Path, task: str, seconds: float | None = None) -> dict[str, Any]:
    """Score predictions with ie_eval.py; return its figures, and `orders` if there are several orders."""
    output = predictions.with_name(f"{predictions.stem}-scores.json")
    options = option_words(predictions=predictions, output=output, lenient=True)
    run_once(output.with_suffix(".log"), "finetune/ie_eval.py", options)
    scores = json.loads(output.read_text(encoding="utf-8"))
    figures = {key: scores[KINDS[task]][key] for key in ("f1", "f1_interval", "precision", "recall", "predicted")}
    figures |= {key: scores.get(key) for key in ("parsed", "stopped", "not_in_text")}
    figures |= {"f1_lenient": scores["lenient"][KINDS[task]]["f1"], "seconds_a_row": seconds}
    if "orders" in scores:
        figures["orders"] = {key: scores["orders"][KINDS[task]][key] for key in ("f1_mean", "f1_std")}
    return figures


def grammar_figures(bench: Benchmark, model: Model, folder: Path, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Answer the test set with /extract, and return the figures of each task."""
    requests = [bench.rows(f"{task}-requests") for task in tasks]
    write_jsonl(folder / "requests.jsonl", [row for rows in requests for row in rows])
    output = folder / "extracted.jsonl"
    options = option_words(
        model=served_folder(bench, model, folder), input=folder / "requests.jsonl", output=output,
        max_tokens=bench.max_new_tokens, overwrite=True,
    )  # fmt: skip
    engine = ["--dtype", "bfloat16" if bench.bf16 else "float32"]
    run_once(output.with_suffix(".log"), "inference/batch.py", options, engine)
    answers, figures = iter(read_jsonl(output)), {}
    for task, rows in zip(tasks, requests, strict=True):
        predictions = write_jsonl(folder / f"{task}-grammar.jsonl", [next(answers) for _ in rows])
        figures[task] = score(predictions, task)
    return figures


def served_folder(bench: Benchmark, model: Model, folder: Path) -> Path:
    """Return the folder that the server loads: a merged or tuned model, or links to the base and the wording."""
    served = folder / "merged"
    if model.adapter:
        options = option_words(path_zhixi=model.folder, path_lora=model.adapter, path_sfted=served)
        run_into(folder / "merge.log", served, "tools/weight_diff.py", ["merge", *options])
        return served
    if model.training:
        return model.folder
    served.mkdir(exist_ok=True)
    wording = bench.data / "extraction.json"
    files = [*(file for file in bench.base.iterdir() if file.is_file() and file.name != wording.name), wording]
    for file in files:
        if not (served / file.name).is_symlink():
            (served / file.name).symlink_to(file.resolve())
    return served


def run_into(log: Path, output: Path, script: str, options: Sequence[object]) -> str:
    """Return `run_once` of a command that writes a new folder.

    An unfinished run is resumed from its newest complete checkpoint; without one, its folder is removed first.
    """
    if not log.is_file():
        saved = {file.parent: int(file.parent.name.rpartition("-")[2]) for file in output.glob(COMPLETE)}
        if saved:
            options = [*options, f"--resume_from_checkpoint={max(saved, key=lambda folder: saved[folder])}"]
        else:
            shutil.rmtree(output, ignore_errors=True)
    return run_once(log, script, options)


def tuned_model(bench: Benchmark, system: str, seed: int, folder: Path) -> Model:
    """Tune the base for about `minutes`, or for the --max_steps after --; return the model."""
    steps = None if is_given("max_steps", bench.tuning) else steps_within(bench, system)
    output = folder / ("adapter" if system == "lora" else "model")
    options = tuning_options(bench, system, output, seed=seed, max_steps=steps)
    run_into(folder / "tuning.log", output, "finetune/finetune.py", options)
    training = training_figures(output)
    return Model(bench.base, str(output), training) if system == "lora" else Model(output, "", training)


def tuning_options(bench: Benchmark, system: str, output: Path, **more: object) -> list[str]:
    """Return the options of finetune.py; options given after -- replace the defaults."""
    sources = ",".join(map(str, bench.training))
    own = TUNING | {"learning_rate": LEARNING_RATES[system], "show_rows": "False"} | more
    own = {name: value for name, value in own.items() if not is_given(name, bench.tuning)}
    fixed = {"base_model": bench.base, "data_path": sources, "output_dir": output, "method": system}
    return [*option_words(**fixed, bf16=bench.bf16, cache_dir=bench.folder / "cache", **own), *bench.tuning]


def is_given(name: str, words: Sequence[str]) -> bool:
    """Return whether an option is among the words of a command line."""
    return any(word.partition("=")[0].replace("-", "_") == f"__{name}" for word in words)


def steps_within(bench: Benchmark, system: str) -> int:
    """Return the number of steps that take about `minutes`, by the speed of a run of TIMED_STEPS."""
    folder = bench.folder / f"{system}-timing"
    folder.mkdir(exist_ok=True)
    output = folder / "result"
    tuning = tuning_options(bench, system, output, max_steps=TIMED_STEPS, save_strategy="no")
    # The last of equal options is used, also if --logging_steps was given after --.
    run_into(folder / "tuning.log", output, "finetune/finetune.py", [*tuning, "--logging_steps=1"])
    options = option_words(train_log=output / "train_log.jsonl", seconds=round(60 * bench.minutes))
    return int(run_once(folder / "steps.log", "examples/make_demo.py", ["steps", *options]))


def training_figures(output: Path) -> dict[str, float | None]:
    """Return rank (0: all weights), steps, minutes, examples and epochs of a finished tuning run.

    The log of a resumed run has only the time since the checkpoint, so minutes are those of all steps at this speed.
    """
    given = json.loads((output / "run.json").read_text(encoding="utf-8"))["arguments"]
    last = read_jsonl(output / "train_log.jsonl")[-1]
    resumed = CHECKPOINT.search(str(given["resume_from_checkpoint"]))  # "None" in a run that was not resumed
    timed = last["step"] - (int(resumed[1]) if resumed else 0)
    return {
        "rank": 0 if given["method"] == "full" else given["lora_r"],
        "steps": last["step"],
        "minutes": round(last["train_runtime"] / 60 * last["step"] / timed, 2) if timed else None,
        "examples": last["step"] * given["batch_size"],
        "epochs": last["epoch"],
    }


def computes_in_bf16(precision: str) -> bool:
    """Return whether to compute in bfloat16; `auto`: on a GPU that supports it, or a CPU with instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text(encoding="utf-8").split()))


def grammar_available() -> bool:
    """Return whether vLLM is installed; prints a notice if not."""
    if importlib.util.find_spec("vllm"):
        return True
    print("notice: vLLM is not installed, so nothing is answered under the grammar", file=sys.stderr)
    return False
