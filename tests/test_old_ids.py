"""Every stage uses SentencePiece's ids 1 and 2 for a checkpoint of early 2023 (LLaMATokenizer, bos 0, eos 1)."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY, RunScript, free_port, small_texts
from corpus_files.corpus import Corpus
from demo_pages import model_loading, text_generation
from demo_pages.text_generation import Decoding
from exact_tokenizers import special_ids
from exact_tokenizers.special_ids import corrected_ids
from gguf_files.gguf_vocabulary import read_vocabulary
from in_process import run_in_process
from lora_adapters import make_adapter
from pretraining_runs import options, train_here
from transformers import GenerationConfig, LlamaConfig
from tuning_runs import command

import finetune

OLD_CONFIG: dict[str, Any] = {
    "architectures": ["LLaMAForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": -1,
}
RIGHT = {"bos_token_id": 1, "eos_token_id": 2}
NOTICE = "has bos_token_id 0 and eos_token_id 1, as old conversions have; the tokenizer's 1 and 2 are used"


@pytest.fixture
def old(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny checkpoint with the small files of LLaMA's first conversions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    special_ids.print_notice.cache_clear()
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.model"):
        shutil.copyfile(tiny_checkpoint / name, folder / name)
    files: dict[str, dict[str, Any]] = {
        "config": json.loads((tiny_checkpoint / "config.json").read_text()) | OLD_CONFIG,
        "generation_config": {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
        "tokenizer_config": {
            "bos_token": "", "eos_token": "", "unk_token": "", "model_max_length": 10**30,
            "tokenizer_class": "LLaMATokenizer",
        },
        "special_tokens_map": {},
    }  # fmt: skip
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def ids_in(folder: Path, *names: str) -> list[dict[str, Any]]:
    """Return the BOS and EOS ids of the folder's configurations."""
    configs = [json.loads((folder / f"{name}.json").read_text()) for name in names or ("config", "generation_config")]
    return [{key: config[key] for key in RIGHT} for config in configs]


def test_only_old_ids_are_replaced() -> None:
    assert corrected_ids(OLD_CONFIG, 1, 2) == RIGHT | {"pad_token_id": None}
    assert corrected_ids({"bos_token_id": 0, "eos_token_id": 1}, 1, 2) == RIGHT
    others: list[tuple[dict[str, Any], int | None, int | None]] = [
        ({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}, 1, 2),
        ({"bos_token_id": 0, "eos_token_id": [1, 2]}, 1, 2),
        ({"eos_token_id": 1}, 1, 2),
        (OLD_CONFIG, 0, 1),  # a tokenizer that has these ids
        (OLD_CONFIG, None, 2),
    ]
    for config, bos, eos in others:
        assert corrected_ids(config, bos, eos) == {}, config


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_value_that_is_not_a_token_id_is_refused(key: str) -> None:
    """Generation would fail with a TypeError for such a value."""
    tokenizer = SimpleNamespace(bos_token_id=1, eos_token_id=2)
    for value, is_refused in (([None], True), ("x", True), ([2, 3], key != "eos_token_id"), (None, False), (0, False)):
        model = SimpleNamespace(config=LlamaConfig(), generation_config=GenerationConfig())
        setattr(model.generation_config, key, value)
        message = rf"^base has {key} {re.escape(repr(value))}, which is not a token id; correct its config\.json and"
        with pytest.raises(ValueError, match=message) if is_refused else nullcontext():
            special_ids.correct_model_ids(model, tokenizer, "base")


def test_demo_ends_at_eos_and_not_at_bos(old: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, right = model_loading.load(str(old)), model_loading.load(str(tiny_checkpoint))
    assert capsys.readouterr().err.count(f"notice: {old} {NOTICE}\n") == 1
    ids = loaded.encoder.plain_text_ids("  two spaces, 山水")
    assert ids == right.encoder.plain_text_ids("  two spaces, 山水") and ids[0] == 1
    assert text_generation.generation_config(loaded, ids, Decoding(4)).eos_token_id == [2]
    assert (loaded.model.config.bos_token_id, loaded.model.config.pad_token_id) == (1, None)
    assert loaded.model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("name", ["", "tokenizer.model"])
def test_corpus_documents_begin_with_bos_and_end_with_eos(
    old: Path, tmp_path: Path, run_script: RunScript, name: str
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(small_texts(20)))
    run_script(
        "pretrain/preprocess.py", "--mode", "write", "--file_path", tmp_path / "texts.txt", "--save_prefix",
        tmp_path / "corpus", "--tokenizer_path", old / name, "--seq_length", 64,
    )  # fmt: skip
    ids = [int(index) for sample in Corpus(tmp_path / "corpus") for index in sample]
    assert (ids[0], ids[-1]) == (1, 2)
    assert ids.count(1) == ids.count(2) == 40  # one of each per document
    if not name:
        train_here(*options(old, tmp_path / "corpus", tmp_path / "out", "--max_steps", 1))
        assert ids_in(tmp_path / "out") == [RIGHT, RIGHT]


def test_tuned_model_is_saved_with_ids_of_the_tokenizer(old: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "Say.", "input": "", "output": text} for text in small_texts(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False))
    more = ("--method", "full", "--max_steps", "1", "--prompt_template_name", "alpaca", "--val_set_size", "0")
    finetune.main(command(old, tmp_path / "rows.json", tmp_path / "tuned", *more))
    (config, generation) = ids_in(tmp_path / "tuned")
    assert config == RIGHT
    assert generation in (RIGHT, RIGHT | {"eos_token_id": [2]})


def test_tools_write_ids_of_the_tokenizer(old: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    lora = make_adapter(tiny_checkpoint, tmp_path / "lora", target_modules=["q_proj"])
    done = run_in_process(
        "tools/weight_diff.py", "merge", "--path_zhixi", old, "--path_lora", lora, "--path_sfted", tmp_path / "merged"
    )
    assert done.stderr == f"notice: {tmp_path}/merged {NOTICE}\n"
    (tmp_path / "t.jinja").write_text("{{ bos_token }}{{ messages[0].content }}{{ messages[0].input }}")
    run_in_process(
        "tools/set_template.py", "--model_path", old, "--template_path", tmp_path / "t.jinja", "--output_dir",
        tmp_path / "with_template",
    )  # fmt: skip
    for name in ("merged", "with_template"):
        assert ids_in(tmp_path / name) == [RIGHT, RIGHT], name
    assert ids_in(old) == [{"bos_token_id": 0, "eos_token_id": 1}] * 2  # inputs are not changed
    assert read_vocabulary(old, 800).special_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 0}
    run_in_process("tools/build_tokenizer.py", "--tokenizer_model", old / "tokenizer.model", "--output_dir", old)
    assert ids_in(old) == [RIGHT, RIGHT]


PARSE = """
import json, sys
from server_launch.launch_args import parse_server_args
from vllm.transformers_utils.config import try_get_generation_config
for arguments in json.loads(sys.argv[1]):
    args = parse_server_args(arguments)
    generation = try_get_generation_config(args.generation_config, trust_remote_code=False)
    print(json.dumps([generation.eos_token_id, args.tokenizer]))
"""


@pytest.mark.integration
def test_server_ends_at_eos_of_the_tokenizer(old: Path) -> None:
    """Without generation_config.json, vLLM uses the ids of config.json. --tokenizer also accepts a tokenizer.model."""
    bare = shutil.copytree(old, old.parent / "bare")
    (bare / "generation_config.json").unlink()
    port = ["--port", str(free_port())]
    lines = [["--model", str(old), *port], ["--model", str(bare), *port, "--tokenizer", str(bare / "tokenizer.model")]]
    done = subprocess.run(
        [sys.executable, "-c", PARSE, json.dumps(lines)], cwd=REPOSITORY / "inference", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    for line in done.stdout.splitlines()[-2:]:
        eos, tokenizer = json.loads(line)
        assert eos == 2
        assert tokenizer.startswith(f"{old.parent}/cache/knowlm/tokenizers/")
    assert done.stderr.count(NOTICE) == 2
