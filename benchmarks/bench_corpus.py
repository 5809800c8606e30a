"""Speed of writing a corpus, against SentencePiece alone, our tokenizer engine alone, datasets.map and datatrove.

    python benchmarks/bench_corpus.py
    python benchmarks/bench_corpus.py --megabytes 600 --rounds 5 --tokenizer_path checkpoints/base

All contenders tokenise the same documents, each with one thread, once in every round. Text: the documents of data_path
(three JSONL files under ../shared/data/corpus), repeated with small edits, or else the installed Python sources. The
last line is JSON; figures are medians over the rounds:

- mb_per_cpu_s: MB of UTF-8 text per CPU second of `preprocess.py --mode write`, without the process's start;
- vs_sentencepiece, vs_engine_ceiling, vs_datasets_map, vs_datatrove: mb_per_cpu_s divided by the contender's rate;
- two_workers: wall-clock time with --num_workers 1 divided by the time with 2;
- peak_pss_mb: peak of the sampled proportional set size of all processes, with two workers.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from measurements import DATA, REPOSITORY, ProcessUsage, read_jsonl, run_measured

sys.path.insert(0, str(REPOSITORY / "pretrain"))
SCRIPT = REPOSITORY / "pretrain/preprocess.py"


def real_texts(data_path: Path) -> list[str]:
    """Return the documents of a folder's JSONL files, or Python sources if there are none."""
    if files := sorted(data_path.glob("*.jsonl")):
        return [text for file in files for text in texts_of(file)]
    sources = sorted(Path(np.__file__).parent.parent.rglob("*.py"))[:4000]
    return [file.read_text(encoding="utf-8", errors="ignore") for file in sources]


def texts_of(file: Path) -> list[str]:
    return [row["text"] for row in read_jsonl(file)]


def with_random_words(texts: list[str], megabytes: float) -> Iterator[str]:
    """Yield shuffled documents, each with a random word inserted, until their size reaches `megabytes`."""
    rng, size = random.Random(0), 0.0
    while True:
        rng.shuffle(texts)
        for text in texts:
            at = rng.randrange(len(text) + 1)
            document = f"{text[:at]} {rng.getrandbits(32):x} {text[at:]}"
            yield document
            size += len(document.encode()) / 1e6
            if size >= megabytes:
                return


def pss(process: psutil.Process) -> list[int]:
    """Return the proportional set size of a process and its children."""
    return [sum(each.memory_full_info().pss for each in (process, *process.children(recursive=True)))]


def run_write(text: Path, tokenizer: Path, workers: int) -> ProcessUsage:
    """Run `preprocess.py --mode write`."""
    target = text.parent / "corpus"
    shutil.rmtree(target, ignore_errors=True)
    command = [
        sys.executable, SCRIPT, "--mode", "write", "--file_path", text, "--save_prefix", target / "out",
        "--tokenizer_path", tokenizer, "--num_workers", workers,
    ]  # fmt: skip
    return run_measured(command, text.parent, 0.1, pss)


def by_sentencepiece(text: Path, tokenizer: Path) -> Callable[[], object]:
    """Return a function that encodes the documents with SentencePiece."""
    import sentencepiece

    documents, reference = texts_of(text), sentencepiece.SentencePieceProcessor(str(tokenizer / "tokenizer.model"))
    return lambda: deque(map(reference.encode, documents), maxlen=0)


def by_engine(text: Path, tokenizer: Path) -> Callable[[], object]:
    """Return a function that encodes the documents with a newly loaded gigatoken, whose word cache is empty."""
    from corpus_tokenizer.document_encoder import load_encoder

    documents, fast = texts_of(text), load_encoder(tokenizer).engine.fast
    return lambda: deque((fast.encode(document) for document in documents), maxlen=0)


def by_datasets(text: Path, tokenizer: Path) -> Callable[[], object]:
    """Return a function that runs batched datasets.map with the folder's tokenizer.json in one process."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    fast = AutoTokenizer.from_pretrained(tokenizer)
    table = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(text.parent / "datasets"))

    def encode(rows: Any) -> dict[str, Any]:
        return {"input_ids": fast(rows["text"], verbose=False).input_ids}

    return lambda: table.map(encode, batched=True, remove_columns=["text"], load_from_cache_file=False)


def by_datatrove(text: Path, tokenizer: Path) -> Callable[[], object]:
    """Return a function that runs datatrove's Megatron writer."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

    out = Path(tempfile.mkdtemp(dir=text.parent))
    names = {"tokenizer_name_or_path": str(tokenizer / "tokenizer.json"), "eos_token": "</s>"}
    writer = MegatronDocumentTokenizer(str(out), **names)
    steps = [JsonlReader(str(text.parent), glob_pattern=text.name), writer]
    return LocalPipelineExecutor(steps, logging_dir=str(out / "logs")).run


BASELINES = {
    "sentencepiece": by_sentencepiece, "engine_ceiling": by_engine, "datasets_map": by_datasets,
    "datatrove": by_datatrove,
}  # fmt: skip


def main(
    megabytes: float = 300, rounds: int = 3, tokenizer_path: str = "", data_path: str = "", sample_megabytes: float = 20
) -> None:
    """Write `megabytes` of text in every round; the baselines tokenise only sample_megabytes."""
    with tempfile.TemporaryDirectory(prefix="bench-corpus-") as folder:
        scratch = Path(folder)
        tokenizer = Path(tokenizer_path) if tokenizer_path else llama_tokenizer(scratch)
        texts = real_texts(Path(data_path) if data_path else DATA / "corpus")
        sizes = {}
        for name, wanted in (("all", megabytes), ("sample", sample_megabytes), ("none1", 0.001), ("none2", 0.001)):
            with (scratch / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                sizes[name] = 0.0
                for text in with_random_words(texts, wanted):
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    sizes[name] += len(text.encode()) / 1e6
        results = []
        for number in range(1, rounds + 1):
            idle, idle_two = (run_write(scratch / "none?.jsonl", tokenizer, workers) for workers in (1, 2))
            one, two = (run_write(scratch / "all.jsonl", tokenizer, workers) for workers in (1, 2))
            ours = sizes["all"] / (one.cpu_seconds - idle.cpu_seconds)
            result = {"mb_per_cpu_s": ours}
            for name, prepare in BASELINES.items():
                tokenise = prepare(scratch / "sample.jsonl", tokenizer)
                begun = time.process_time()
                tokenise()
                result[f"vs_{name}"] = ours * (time.process_time() - begun) / sizes["sample"]
            result["two_workers"] = (one.seconds - idle.seconds) / (two.seconds - idle_two.seconds)
            result["peak_pss_mb"] = two.peaks[0] / 1e6
            results.append(result)
            print(f"round {number}: " + ", ".join(f"{name} {value:.3g}" for name, value in result.items()), flush=True)
        medians = {name: round(median(result[name] for result in results), 3) for name in results[0]}
        print(json.dumps(medians | {"megabytes": megabytes, "rounds": rounds}))


def llama_tokenizer(scratch: Path) -> Path:
    """Build LLaMA-2's tokenizer with its exact tokenizer.json; return its folder."""
    model = DATA / "llama/tokenizer.model"
    if not model.is_file():
        raise FileNotFoundError(f"{model} does not exist; name a tokenizer's folder with --tokenizer_path")
    build = [sys.executable, str(REPOSITORY / "tools/build_tokenizer.py"), "--tokenizer_model", str(model)]
    subprocess.run([*build, "--output_dir", str(scratch / "tokenizer")], check=True, stdout=subprocess.DEVNULL)
    shutil.copyfile(model, scratch / "tokenizer/tokenizer.model")
    return scratch / "tokenizer"


if __name__ == "__main__":
    from command_line.fire_commands import run

    run(main)
