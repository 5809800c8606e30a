"""The inputs of fuzzed commands, and the processes that run them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

LIBRARIES = {
    "tools": [
        "numpy",
        "torch",
        "transformers",
        "huggingface_hub",
        "sentencepiece",
        "tokenizers",
        "checkpoint_io.tensors",
    ],
    "finetune": ["torch", "transformers", "peft", "accelerate", "instruction_tuning.tuning_arguments"],
    "pretrain": [
        "torch",
        "transformers",
        "accelerate",
        "deepspeed",
        "datatrove.executor",
        "pretraining.pretraining_arguments",
    ],
    "examples": ["torch", "transformers", "peft", "sentencepiece", "gradio", "demo_pages.web_page"],
    "inference": ["vllm.entrypoints.cli.serve", "server_launch.launch_args", "batch_runs.batch_run"],
}
LIGHT_LIBRARIES = ["numpy", "blake3", "tqdm", "command_line.fire_commands", "command_line.strict_parsers"]


class ForkServer:
    """A process of a stage that forks a process for each run (tests/command_fork_server.py)."""

    def __init__(self, stage: str, modules: list[str]) -> None:
        command = [sys.executable, str(REPOSITORY / "tests/command_fork_server.py"), stage, *modules]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout and self.process.stdout.readline() == "{}\n", "the fork server did not start"

    def run(self, words: list[str], cwd: Path, seconds: float = 120) -> dict[str, Any]:
        """Return {"status", "out", "err"} of a command; the status is None if it ran longer than `seconds`."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"words": words, "cwd": str(cwd), "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="session")
def fork_servers() -> Iterator[Callable[[str, bool], ForkServer]]:
    """Return a function that starts a fork server of a stage once, with its heavy libraries or with light ones."""
    started: dict[tuple[str, bool], ForkServer] = {}

    def get(stage: str, heavy: bool) -> ForkServer:
        if (stage, heavy) not in started:
            started[stage, heavy] = ForkServer(stage, LIBRARIES[stage] if heavy else LIGHT_LIBRARIES)
        return started[stage, heavy]

    yield get
    for fork_server in started.values():
        fork_server.stop()


ROW = {"instruction": "Name the persons.", "input": "Ann Lee was born in Oslo.", "output": '{"person": ["Ann Lee"]}'}
SENTENCE = {
    "sentence": "Ann Lee was born in Oslo.",
    "entity_list": [{"entity": "Ann Lee", "entity_type": "person"}],
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_tokenizer: Path, two_sources: Path
) -> Path:
    """A folder with a valid, tiny input of each kind; every run of a command gets a copy of the folder."""
    import torch
    from changed_weights import nudged, variant
    from in_process import run_in_process
    from lora_adapters import make_adapter
    from original_llama import TINY, random_state, write_original
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("inputs")
    base = shutil.copytree(tiny_checkpoint, folder / "base")
    (folder / "empty").mkdir()
    shutil.copytree(tiny_tokenizer, folder / "tokenizer")
    shutil.copytree(base, folder / "chat")
    shutil.copy(REPOSITORY / "finetune/templates/alpaca.jinja", folder / "chat/chat_template.jinja")
    shutil.copy(REPOSITORY / "finetune/templates/alpaca.jinja", folder)
    make_adapter(base, folder / "adapter", r=2, target_modules=["q_proj", "v_proj"])
    variant(base, folder / "tuned", nudged(load_file(base / "model.safetensors")))
    run_in_process(
        "tools/weight_diff.py", "make_diff", "--path_raw", base, "--path_tuned", folder / "tuned", "--path_diff",
        folder / "diff",
    )  # fmt: skip
    run_in_process("tools/export_gguf.py", "--model_path", base, "--output_file", folder / "model.gguf")
    shutil.copytree(base, folder / "sealed")
    run_in_process("tools/checkpoint.py", "seal", folder / "sealed")
    state = random_state(TINY, 800, torch.float16)
    write_original(folder / "original", TINY | {"vocab_size": 800}, state, tiny_tokenizer / "tokenizer.model")
    (folder / "corpus").mkdir()
    for file in two_sources.parent.glob("??.*"):
        if file.suffix != ".txt":
            shutil.copy(file, folder / "corpus")
    write_rows(folder / "rows.jsonl", [ROW] * 4)
    write_rows(
        folder / "texts.jsonl", [{"text": f"Number {n}: 山水 {n * n} is a sentence about {n}. " * 3} for n in range(40)]
    )
    write_rows(folder / "annotations.jsonl", [SENTENCE])
    write_rows(folder / "predictions.jsonl", [ROW | {"prediction": ROW["output"]}])
    write_rows(folder / "cases.jsonl", [{"text": "Ann"}])
    write_rows(folder / "edits.jsonl", [{"prompt": "{} was born in", "subject": "Ann", "target_new": "Oslo"}])
    (folder / "ids.txt").write_text("0\n")
    return folder
