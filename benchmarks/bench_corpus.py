"""Speed of writing a corpus, against SentencePiece alone, our tokenizer engine alone, datasets.map and datatrove.

    python benchmarks/bench_corpus.py
    python benchmarks/bench_corpus.py --megabytes 600 --rounds 5 --tokenizer_path checkpoints/base

All contenders tokenise the same documents with one thread each, in alternating rounds. Text: the documents of data_path
(three JSONL files under ../shared/data/corpus), repeated with small edits, or else the installed Python sources. The
last line is JSON; figures are medians over the rounds:

- mb_per_cpu_s: MB of UTF-8 text per CPU second of `preprocess.py --mode write`, without the process's start;
- vs_sentencepiece, vs_engine_ceiling, vs_datasets_map, vs_datatrove: mb_per_cpu_s divided by the same
  rate of the contender (null: not installed);
- two_workers: wall-clock time with --num_workers 1 divided by the time with 2;
- peak_pss_mb: peak of the sampled proportional set size of all processes, with two workers.
"""

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import fire
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "pretrain"))
SCRIPT = REPOSITORY / "pretrain/preprocess.py"


# --- text -------------------------------------------------------------------------------------------------------------


def real_texts(data_path: Path) -> list[str]:
    """Return the documents of a folder's JSONL files, or Python sources if there are none."""
    files = sorted(data_path.glob("*.jsonl"))
    if files:
        return [json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8")]
    sources = sorted(Path(np.__file__).parent.parent.rglob("*.py"))[:4000]
    return [file.read_text(encoding="utf-8", errors="ignore") for file in sources]


def edited(texts: list[str], megabytes: float, seed: int = 0) -> Iterator[str]:
    """Yield shuffled documents, each with a random word inserted, until their size reaches `megabytes`."""
    draw, size = random.Random(seed), 0.0
    while True:
        draw.shuffle(texts)
        for text in texts:
            at = draw.randrange(len(text) + 1)
            document = f"{text[:at]} {draw.getrandbits(32):x} {text[at:]}"
            yield document
            size += len(document.encode()) / 1e6
            if size >= megabytes:
                return


# --- what is measured -------------------------------------------------------------------------------------------------


def cpu_rate(work: Callable[[], object], megabytes: float) -> float:
    """Run `work`; return MB per CPU second of this process."""
    begun = time.process_time()
    work()
    return megabytes / (time.process_time() - begun)


class Write:
    """`preprocess.py --mode write` as a process: CPU seconds, wall seconds, and the memory of all its processes."""

    def __init__(self, text: Path, tokenizer: Path, workers: int, scratch: Path) -> None:
        command = [
            sys.executable, str(SCRIPT), "--mode", "write", "--file_path", str(text), "--save_prefix",
            str(scratch / "corpus/out"), "--tokenizer_path", str(tokenizer), "--num_workers", str(workers),
        ]  # fmt: skip
        shutil.rmtree(scratch / "corpus", ignore_errors=True)
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.peak = 0.0
        watch = threading.Thread(target=self._watch, args=(process.pid,), daemon=True)
        watch.start()
        if process.wait():
            raise ValueError(f"{' '.join(command)} failed with status {process.returncode}; run it by hand")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.wall = time.perf_counter() - begun
        self.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def _watch(self, parent: int) -> None:
        while True:
            found = sum(pss(process) for process in family(parent))
            if not found:
                return
            self.peak = max(self.peak, found)
            time.sleep(0.1)


def family(parent: int) -> list[int]:
    """Return the ids of a process and all its descendants."""
    found = [parent]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def pss(process: int) -> float:
    """Return a process's proportional set size in MB; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000
    except (OSError, StopIteration):
        return 0.0


def by_datasets(text: Path, tokenizer: Path, scratch: Path) -> Callable[[], object]:
    """Return a function that runs batched datasets.map with the folder's tokenizer.json in one process."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    words = AutoTokenizer.from_pretrained(tokenizer)
    table = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(scratch / "datasets"))

    def work() -> object:
        encode: Any = lambda rows: {"input_ids": words(rows["text"], verbose=False).input_ids}  # noqa: E731
        return table.map(encode, batched=True, remove_columns=["text"], load_from_cache_file=False)

    return work


def by_datatrove(text: Path, tokenizer: Path, scratch: Path) -> Callable[[], object] | None:
    """Return a function that runs datatrove's Megatron writer; None if datatrove is not installed."""
    try:
        from datatrove.executor import LocalPipelineExecutor
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer
    except ImportError:
        return None

    def work() -> object:
        out = Path(tempfile.mkdtemp(dir=scratch))
        words = {"tokenizer_name_or_path": str(tokenizer / "tokenizer.json"), "eos_token": "</s>"}
        steps = [JsonlReader(str(text.parent), glob_pattern=text.name), MegatronDocumentTokenizer(str(out), **words)]
        return LocalPipelineExecutor(steps, logging_dir=str(out / "logs")).run()

    return work


# --- the rounds -------------------------------------------------------------------------------------------------------


def main(
    megabytes: float = 300,
    rounds: int = 3,
    tokenizer_path: str = "",
    data_path: str = "",
    sample_megabytes: float = 20,
    **unknown: object,
) -> None:
    """Write `megabytes` of text in every round; the baselines tokenise only sample_megabytes."""
    if unknown:
        raise ValueError(f"unknown option --{next(iter(unknown))}; see --help")
    import sentencepiece
    from corpus_tokenizer.document_encoder import load_encoder

    shared = REPOSITORY.parent / "shared/data"
    with tempfile.TemporaryDirectory(prefix="bench-corpus-") as folder:
        scratch = Path(folder)
        tokenizer = Path(tokenizer_path) if tokenizer_path else llama_tokenizer(shared, scratch)
        texts = real_texts(Path(data_path) if data_path else shared / "corpus")
        sizes = {}
        for name, wanted in (("all", megabytes), ("sample", sample_megabytes), ("none1", 0.001), ("none2", 0.001)):
            with (scratch / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                sizes[name] = 0.0
                for text in edited(texts, wanted):
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    sizes[name] += len(text.encode()) / 1e6
        sample = [json.loads(line)["text"] for line in (scratch / "sample.jsonl").open(encoding="utf-8")]
        oracle = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))

        def engine() -> Callable[[], object]:
            """Load a new tokenizer for each round, because its word cache would make a second pass faster."""
            fast = load_encoder(tokenizer).engine.fast
            return lambda: deque((fast.encode(text) for text in sample), maxlen=0)

        baselines: dict[str, Callable[[], Callable[[], object] | None]] = {
            "sentencepiece": lambda: lambda: deque(map(oracle.encode, sample), maxlen=0),
            "engine_ceiling": engine,
            "datasets_map": lambda: by_datasets(scratch / "sample.jsonl", tokenizer, scratch),
            "datatrove": lambda: by_datatrove(scratch / "sample.jsonl", tokenizer, scratch),
        }
        rows = []
        for number in range(1, rounds + 1):
            idle, idle_two = (Write(scratch / "none?.jsonl", tokenizer, workers, scratch) for workers in (1, 2))
            one = Write(scratch / "all.jsonl", tokenizer, 1, scratch)
            two = Write(scratch / "all.jsonl", tokenizer, 2, scratch)
            ours = sizes["all"] / (one.cpu - idle.cpu)
            row = {"mb_per_cpu_s": ours}
            for name, prepare in baselines.items():
                if work := prepare():
                    row[f"vs_{name}"] = ours / cpu_rate(work, sizes["sample"])
            row |= {"two_workers": (one.wall - idle.wall) / (two.wall - idle_two.wall), "peak_pss_mb": two.peak}
            rows.append(row)
            print(f"round {number}: " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
        result = {name: round(median(row[name] for row in rows), 3) for name in rows[0]}
        result |= {f"vs_{name}": None for name in baselines if f"vs_{name}" not in result}
        print(json.dumps(result | {"megabytes": megabytes, "rounds": rounds}))


def llama_tokenizer(shared: Path, scratch: Path) -> Path:
    """Build LLaMA-2's tokenizer with its exact tokenizer.json; return its folder."""
    model = shared / "llama/tokenizer.model"
    if not model.is_file():
        raise FileNotFoundError(f"{model} does not exist; name a tokenizer's folder with --tokenizer_path")
    build = [sys.executable, str(REPOSITORY / "tools/build_tokenizer.py"), "--tokenizer_model", str(model)]
    subprocess.run([*build, "--output_dir", str(scratch / "tokenizer")], check=True, stdout=subprocess.DEVNULL)
    shutil.copyfile(model, scratch / "tokenizer/tokenizer.model")
    return scratch / "tokenizer"


if __name__ == "__main__":
    try:
        fire.Fire(main, ["--", "--help"] if "--help" in sys.argv else None)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
