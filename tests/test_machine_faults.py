"""Every command that writes files loses nothing on a failing machine, and finishes when it is run again."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from changed_weights import nudged, variant
from conftest import QUANTISED, REPOSITORY, RunScript, small_texts
from hub_server import DIFF, Hub, serving
from machine_faults import KINDS, FaultyMachine, Trial, points
from merged_adapters import write_adapter
from original_llama import TINY, random_state, write_original
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="fault_injection.c needs a C compiler")
RUN_FILES = (
    "complete.json",
    "train_log.jsonl",
    "trainer_state.json",
    "training_curves.png",
    "training_args.bin",
    "run.json",
)


def write_material(folder: Path, base: Path, tokenizer: Path) -> None:
    """Write the inputs of all trials to a folder: checkpoints, an adapter, texts, instruction rows, corpora."""
    import torch

    shutil.copytree(base, folder / "base")
    variant(base, folder / "tuned", nudged(load_file(base / "model.safetensors")))
    write_adapter(base, folder / "adapter")
    shutil.copytree(tokenizer, folder / "adapter", dirs_exist_ok=True)
    state = random_state(TINY, 800, torch.float16)
    write_original(folder / "original", TINY, state, tokenizer / "tokenizer.model", 2)
    texts = small_texts(150)
    for name, part in (("en", texts[::2]), ("zh", texts[1::2]), ("twice", texts[:60])):
        (folder / f"{name}.txt").write_text("\n".join([*part, ""]), encoding="utf-8")
    row = {"instruction": "Extract the entities.", "output": '{"person": ["Bafi"]}'}
    rows = [row | {"input": text} for text in texts[:40]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [{"sentence": text, "entity_list": [{"name": text.split()[0], "type": "person"}]} for text in texts[::8]]
    (folder / "annotated.json").write_text(json.dumps(named), encoding="utf-8")
    answered = [row | {"prediction": row["output"]} for row in rows]
    (folder / "answered.json").write_text(json.dumps(answered), encoding="utf-8")


def write(material: Path, workers: int, names: Sequence[str] = ("en", "zh", "twice"), prefix: str = "all") -> Trial:
    files = [material / f"{name}.txt" for name in names]
    return Trial(
        lambda out: ["pretrain/preprocess.py", "--mode", "write", "--file_path", *files, "--save_prefix", out / prefix,
                     "--tokenizer_path", material / "base", "--seq_length", 64, "--min_length", 12,
                     "--num_workers", workers],
        "all.json",
    )  # fmt: skip


def corpora(folder: Path) -> Trial:
    prefixes = f"{folder}/en,{folder}/zh"
    return Trial(
        lambda out: ["pretrain/preprocess.py", "--mode", "merge", "--merge_path_prefix", prefixes,
                     "--merge_path_type", "0,1", "--new_path_prefix", out / "all"],
        "all.json",
    )  # fmt: skip


def clean(material: Path) -> Trial:
    files = [material / f"{name}.txt" for name in ("en", "zh", "twice")]
    return Trial(
        lambda out: ["pretrain/clean.py", "--file_path", *files, "--output_dir", out / "cleaned",
                     "--skip", "quality,repetition"],
        "cleaned/report/report.json",
    )  # fmt: skip


def weights(material: Path, *arguments: object, option: str, target: str = "new") -> Trial:
    """Return the trial of a command that writes one new folder or file, given by `option`; "@name" is an input."""
    resolved = [material / value[1:] if str(value).startswith("@") else value for value in arguments]  # type: ignore[index]
    return Trial(lambda out: [*resolved, option, out / target], target)


def quantize(material: Path) -> Trial:
    trial = weights(material, "tools/quantize.py", "--model_path", "@base", "--method", "bnb8", option="--output_dir")
    return replace(trial, environment={"PYTHONPATH": str(QUANTISED), "OMP_NUM_THREADS": "1"})


def build_examples(material: Path) -> Trial:
    trial = weights(material, "finetune/ie_build.py", "--input", "@annotated.json", option="--output")
    return replace(trial, target="extraction.json")  # moved into place last


def demo_tokenizer(material: Path) -> Trial:
    more = ("--input", "@en.txt", "--vocab_size", 300)
    trial = weights(material, DEMO, "tokenizer", *more, option="--output_dir")
    return replace(trial, target="new/tokenizer.model")


def seal(checkpoint: Path) -> Trial:
    return Trial(
        lambda out: ["tools/checkpoint.py", "seal", out / "sealed", "--parents", checkpoint],
        "sealed/checkpoint.json", prepare=lambda out: shutil.copytree(checkpoint, out / "sealed"),
    )  # fmt: skip


def tokenizer(material: Path) -> Trial:
    model = material / "base/tokenizer.model"
    return Trial(
        lambda out: ["tools/build_tokenizer.py", "--tokenizer_model", model, "--output_dir", out / "new"],
        "new/tokenizer.json",  # moved into place last
    )


def resumed(name: str) -> Callable[[Path], list[object]]:
    """Return the function that returns the further options of a trainer's second run."""

    def more(out: Path) -> list[object]:
        from resumable_checkpoints.complete_checkpoints import list_complete

        return ["--resume_from_checkpoint", "True"] if list_complete(out / name) else []

    return more


def tune(material: Path, *more: object) -> Trial:
    return Trial(
        lambda out: ["finetune/finetune.py", "--base_model", material / "base", "--data_path", material / "rows.jsonl",
                     "--output_dir", out / "adapter", "--cache_dir", out / "cache", "--batch_size", 8,
                     "--micro_batch_size", 8, "--max_steps", 3, "--save_steps", 1, "--save_total_limit", 1,
                     "--learning_rate", "1e-2", "--report_to", "none", *more],
        "adapter/adapter_model.safetensors", resumed=resumed("adapter"), ignored=RUN_FILES,
    )  # fmt: skip


def pretrain(material: Path) -> Trial:
    return Trial(
        lambda out: ["pretrain/train.py", "--model_name_or_path", material / "base",
                     "--data_path", out / "corpus/en", "--output_dir", out / "trained", "--max_steps", 3,
                     "--per_device_train_batch_size", 4, "--save_strategy", "steps", "--save_steps", 1,
                     "--save_total_limit", 1, "--learning_rate", "1e-2", "--logging_steps", 1, "--report_to", "none",
                     "--block_size", 128, "--use_cpu", "True"],
        "trained/config.json", lambda out: shutil.copytree(material / "corpus", out / "corpus"), resumed("trained"),
        RUN_FILES,
    )  # fmt: skip


def download(url: str) -> Trial:
    arguments = ("--specify", "--repo_name", "some/thing", "--endpoint", url)
    return Trial(
        lambda out: ["tools/download.py", "--download_path", out / "new", *arguments], "new",
        environment={"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
    )  # fmt: skip


DEMO = "examples/make_demo.py"
DIFF_TOOL = "tools/weight_diff.py"
PAIR = (DIFF_TOOL, "make_diff", "--path_raw", "@base", "--path_tuned", "@tuned", "--max_shard_size", "100KB")
TRIALS: dict[str, Callable[[Path], Trial]] = {
    "write": lambda material: write(material, 1),
    "write-2": lambda material: write(material, 2),
    "corpora": lambda material: corpora(material / "corpus"),
    "clean": clean,
    "make_diff": lambda material: weights(material, *PAIR, option="--path_diff"),
    "additive": lambda material: weights(material, *PAIR, "--exact=False", option="--path_diff"),
    "recover": lambda material: weights(
        material, DIFF_TOOL, "recover", "--path_raw", "@base", "--path_diff", "@diff", option="--path_tuned"
    ),
    "merge": lambda material: weights(
        material, DIFF_TOOL, "merge", "--path_zhixi", "@base", "--path_lora", "@adapter", option="--path_sfted"
    ),
    "convert": lambda material: weights(
        material, "tools/convert_llama.py", "--input_dir", "@original", "--model_size", "auto",
        "--check_path", "@en.txt", option="--output_dir",
    ),
    "gguf": lambda material: weights(
        material, "tools/export_gguf.py", "--model_path", "@base", option="--output_file", target="new.gguf"
    ),
    "import": lambda material: weights(
        material, "tools/import_gguf.py", "--gguf", "@model.gguf", "--max_shard_size", "100KB", option="--output"
    ),
    "set_template": lambda material: weights(
        material, "tools/set_template.py", "--model_path", "@base",
        "--template_path", REPOSITORY / "finetune/templates/alpaca.jinja", option="--output_dir",
    ),
    "export": lambda material: weights(
        material, "tools/export_hf_checkpoint.py", "--base_model", "@base", "--lora_model", "@adapter",
        option="--output_dir",
    ),
    "quantize": quantize,
    "build_tokenizer": tokenizer,
    "seal": lambda material: seal(material / "base"),
    "tune": tune,
    "pretrain": pretrain,
    "ie_build": build_examples,
    "ie_run": lambda material: weights(
        material, "finetune/ie_run.py", "--base_model", "@base", "--data_path", "@rows.jsonl", "--limit", 5,
        "--batch_size", 2, "--max_new_tokens", 4, option="--output",
    ),
    "ie_eval": lambda material: weights(
        material, "finetune/ie_eval.py", "--predictions", "@answered.json", option="--output"
    ),
    "demo_world": lambda material: weights(
        material, DEMO, "world", "--people", 40, "--documents_per_language", 20, "--rows", 20, "--heldout_rows", 10,
        "--real_megabytes", 0.01, option="--output_dir",
    ),
    "demo_tokenizer": demo_tokenizer,
    "demo_model": lambda material: weights(
        material, DEMO, "model", "--tokenizer_path", "@base", "--hidden_size", 64, option="--output_dir"
    ),
}  # fmt: skip

UNFLUSHED = ("train_log.jsonl", "note.json")  # their loss in a power failure damages no result


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> FaultyMachine:
    if not shutil.which("cc"):
        pytest.skip("a C compiler (cc) is missing")
    return FaultyMachine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def material(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_tokenizer: Path, run_script: RunScript
) -> Path:
    """The inputs of all trials."""
    folder = tmp_path_factory.mktemp("material")
    write_material(folder, tiny_checkpoint, tiny_tokenizer)
    diff = ("--path_raw", folder / "base", "--path_tuned", folder / "tuned", "--path_diff", folder / "diff")
    run_script(DIFF_TOOL, "make_diff", *diff)
    run_script("tools/export_gguf.py", "--model_path", folder / "base", "--output_file", folder / "model.gguf")
    for name in ("en", "zh"):
        run_script(*write(folder, 1, [name], name).arguments(folder / "corpus"))
    return folder


def faults(machine: FaultyMachine, trial: Trial, kind: str, most: int) -> list[str]:
    """Return reports of what went wrong with faults of this kind at up to `most` calls of a trial."""
    expected, calls = machine.undisturbed(trial)
    assert calls
    assert not [name for name in machine.unflushed() if name not in UNFLUSHED]
    return [wrong for at in points(calls, most) if (wrong := machine.fault(trial, expected, kind, at))]


@pytest.mark.integration
@pytest.mark.parametrize(("name", "kind"), [("corpora", "ENOSPC"), ("seal", "KILL")])
def test_command_on_a_failing_machine_loses_nothing(
    machine: FaultyMachine, two_sources: Path, tiny_checkpoint: Path, name: str, kind: str
) -> None:
    trial = corpora(two_sources.parent) if name == "corpora" else seal(tiny_checkpoint)
    assert faults(machine, replace(trial, environment={}), kind, 2) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*TRIALS, "download"])
def test_command_on_a_machine_that_fails_at_any_call_loses_nothing(
    machine: FaultyMachine, material: Path, name: str, kind: str
) -> None:
    if name == "quantize" and not QUANTISED.is_dir():
        pytest.skip("bitsandbytes is not installed; run: bash tools/setup.sh --dev")
    with serving(hub := Hub({"some/thing": dict(DIFF)}), "hub") as hub.url:
        trial = download(hub.url) if name == "download" else TRIALS[name](material)
        assert faults(machine, trial, kind, 20) == []
