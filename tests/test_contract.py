"""The checkpoint format: every consumer reads the folders of every producer.

The producers write their folders once; then each consumer reads each folder, about sixty script runs in all.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import RunScript, small_texts
from forked_scripts import forked_scripts
from transformers import AutoTokenizer

ROWS = [
    {"instruction": "抽取实体。", "input": "山水人家。", "output": '{"地点": ["山水"]}'},
    {"instruction": "Extract the entities.", "input": "Bafi was born in Tola.", "output": '{"person": ["Bafi"]}'},
]
FULL = ("base", "pretrained", "recovered", "recovered_additive", "merged", "exported", "tuned_full", "templated")
CHECKPOINTS = (*FULL, "adapter")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_tokenizer: Path) -> Path:
    """A folder with texts.txt, its corpus (small.*), instruction rows (rows.jsonl) and extraction.json."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "texts.txt").write_text("\n".join(small_texts(40)), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS * 8))
    (folder / "extraction.json").write_text(json.dumps({"tasks": {"ner": {"en": {"instruction": "Extract."}}}}))
    run_script(
        "pretrain/preprocess.py", "--mode", "write", "--file_path", folder / "texts.txt",
        "--save_prefix", folder / "small", "--tokenizer_path", tiny_tokenizer, "--seq_length", 64,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_checkpoint: Path, material: Path
) -> dict[str, Path]:
    """The checkpoint folder of each producer."""
    place = tmp_path_factory.mktemp("produced")
    made = {name: place / name for name in CHECKPOINTS} | {"base": tiny_checkpoint}
    tune = (
        "finetune/finetune.py", "--data_path", material / "rows.jsonl",
        "--extraction_path", material / "extraction.json", "--batch_size", 4, "--micro_batch_size", 4,
        "--max_steps", 3, "--learning_rate", "1e-2", "--report_to", "none", "--save_strategy", "no",
    )  # fmt: skip
    run_script(
        "pretrain/train.py", "--model_name_or_path", made["base"], "--data_path", material / "small",
        "--output_dir", made["pretrained"], "--max_steps", 2, "--learning_rate", "1e-2", "--report_to", "none",
        "--save_strategy", "no",
    )  # fmt: skip
    pair = ("tools/weight_diff.py", "make_diff", "--path_raw", made["base"], "--path_tuned", made["pretrained"])
    back = ("tools/weight_diff.py", "recover", "--path_raw", made["base"])
    for diff, recovered, more in (("diff", "recovered", ()), ("sums", "recovered_additive", ("--exact=False",))):
        run_script(*pair, "--path_diff", place / diff, *more)
        run_script(*back, "--path_diff", place / diff, "--path_tuned", made[recovered])
    run_script(*tune, "--base_model", made["recovered"], "--output_dir", made["adapter"])
    run_script(*tune, "--base_model", made["base"], "--output_dir", made["tuned_full"], "--method", "full")
    run_script(
        "tools/weight_diff.py", "merge", "--path_zhixi", made["recovered"], "--path_lora", made["adapter"],
        "--path_sfted", made["merged"],
    )  # fmt: skip
    run_script(
        "tools/export_hf_checkpoint.py", "--base_model", made["recovered"], "--lora_model", made["adapter"],
        "--output_dir", made["exported"], "--max_shard_size", "200KB",
    )  # fmt: skip
    run_script(
        "tools/set_template.py", "--model_path", made["pretrained"],
        "--template_path", "finetune/templates/alpaca_short.jinja", "--output_dir", made["templated"],
    )  # fmt: skip
    return made


Consumer = Callable[[RunScript, Path, Path, Path], None]  # run_script, checkpoint, material, folder for the output


def preprocess(run: RunScript, folder: Path, material: Path, new: Path) -> None:
    run(
        "pretrain/preprocess.py", "--mode", "write", "--file_path", material / "texts.txt", "--save_prefix", new / "c",
        "--tokenizer_path", folder, "--seq_length", 64,
    )  # fmt: skip
    assert (new / "c.bin").read_bytes() == (material / "small.bin").read_bytes()


def pretrain(run: RunScript, folder: Path, material: Path, new: Path) -> None:
    run(
        "pretrain/train.py", "--model_name_or_path", folder, "--data_path", material / "small",
        "--output_dir", new / "out", "--max_steps", 1, "--report_to", "none", "--save_strategy", "no",
    )  # fmt: skip


def finetune(run: RunScript, folder: Path, material: Path, new: Path) -> None:
    run(
        "finetune/finetune.py", "--base_model", folder, "--data_path", material / "rows.jsonl",
        "--output_dir", new / "out", "--batch_size", 4, "--micro_batch_size", 4, "--max_steps", 2,
        "--learning_rate", "1e-2", "--report_to", "none", "--save_strategy", "no",
    )  # fmt: skip


def ie_run(run: RunScript, folder: Path, material: Path, new: Path) -> None:
    answers = new / "answers.jsonl"
    run(
        "finetune/ie_run.py", "--base_model", folder, "--data_path", material / "rows.jsonl", "--output", answers,
        "--max_new_tokens", 3,
    )  # fmt: skip
    run("finetune/ie_eval.py", "--predictions", answers)


def make_diff(run: RunScript, folder: Path, material: Path, new: Path) -> None:
    run("tools/weight_diff.py", "make_diff", "--path_raw", folder, "--path_tuned", folder, "--path_diff", new / "diff")


def seal(run: RunScript, folder: Path, material: Path, new: Path) -> None:
    run("tools/checkpoint.py", "seal", folder)
    run("tools/checkpoint.py", "verify", folder)
    (folder / "checkpoint.json").unlink()


def demo(run: RunScript, folder: Path, material: Path, new: Path) -> None:
    answered = run("examples/generate_lora.py", "--base_model", folder, "--run_ie_cases", "--max_new_tokens", 2)
    assert "[1/" in answered.stdout


CONSUMERS: tuple[Consumer, ...] = (preprocess, pretrain, finetune, ie_run, make_diff, seal, demo)


@pytest.mark.timeout(1200)
def test_every_consumer_reads_the_folder_of_every_producer(
    checkpoints: dict[str, Path], material: Path, tmp_path: Path
) -> None:
    run = forked_scripts(tmp_path)

    def works(producer: str, consumer: Consumer) -> str:
        new = tmp_path / f"{producer}-{consumer.__name__}"
        new.mkdir()
        try:
            consumer(run, checkpoints[producer], material, new)
        except (AssertionError, pytest.fail.Exception) as error:
            return f"{consumer.__name__} cannot use the checkpoint folder {producer}: {error}"
        return ""

    pairs = [(producer, consumer) for producer in FULL for consumer in CONSUMERS]
    with ThreadPoolExecutor(2) as pool:
        assert not [reason for reason in pool.map(lambda pair: works(*pair), pairs) if reason]


def test_adapter_is_read_with_its_base_and_answers_like_the_merged_model(
    checkpoints: dict[str, Path], material: Path, run_script: RunScript, tmp_path: Path
) -> None:
    base, adapter = checkpoints["recovered"], checkpoints["adapter"]
    cases = ("--run_ie_cases", "--max_new_tokens", 2)
    run_script("examples/generate_lora.py", "--base_model", base, "--lora_weights", adapter, *cases)
    rows = ("--data_path", material / "rows.jsonl", "--max_new_tokens", 8)
    run_script("finetune/ie_run.py", "--base_model", base, "--lora_weights", adapter, *rows, "--output", tmp_path / "a")
    run_script("finetune/ie_run.py", "--base_model", checkpoints["merged"], *rows, "--output", tmp_path / "b")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    for consumer in (seal, preprocess):
        new = tmp_path / consumer.__name__
        new.mkdir()
        consumer(run_script, adapter, material, new)


def test_every_checkpoint_folder_has_the_files_of_its_kind(checkpoints: dict[str, Path]) -> None:
    for name, folder in checkpoints.items():
        held = {file.name for file in folder.iterdir()}
        assert {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "run.json"} <= held, name
        if name == "adapter":
            assert {"adapter_config.json", "adapter_model.safetensors"} <= held
        else:
            assert {"config.json", "generation_config.json"} <= held, name
            assert [file for file in held if file.startswith("model") and file.endswith(".safetensors")], name
        is_tuned = name in ("adapter", "merged", "exported", "tuned_full")
        assert ("chat_template.jinja" in held) == (is_tuned or name == "templated"), name
        assert ("extraction.json" in held) == is_tuned, name
        assert not [file for file in held if file.endswith((".bin", ".pt", ".partial"))], name


def test_tokenizers_of_all_checkpoint_folders_give_the_same_ids(checkpoints: dict[str, Path]) -> None:
    text = "Bafi was born in Tola. <s> 山水人家 🤖\n\n  two  spaces"
    ids = {name: AutoTokenizer.from_pretrained(folder)(text).input_ids for name, folder in checkpoints.items()}
    assert all(found == ids["base"] for found in ids.values())
