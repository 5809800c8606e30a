"""checkpoint.py verify rebuilds the .bin files of a model recovered from a published diff and compares their MD5.

The expected MD5 are those of files that the published recovery script (tools/weight_diff.py of github.com/zjunlp/KnowLM
at 34a0c2b) wrote with transformers 4.28.1, PyTorch 1.13.1 and --max_shard_size 220KB for the weights below.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_io import published_models
from checkpoint_seals.torch_archives import ArchiveHash
from hub_download import model_registry
from in_process import RunTool
from safetensors.torch import load_file, save_file

SCRIPT = "tools/checkpoint.py"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "model_type": "llama",
    "num_attention_heads": 4, "num_hidden_layers": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "torch_dtype": "float16", "vocab_size": 800,
}  # fmt: skip
SHAPES = {"q": (64, 64), "k": (64, 64), "v": (64, 64), "o": (64, 64)}
PARTS = {f"self_attn.{name}_proj.weight": shape for name, shape in SHAPES.items()} | {
    "mlp.gate_proj.weight": (96, 64), "mlp.down_proj.weight": (64, 96), "mlp.up_proj.weight": (96, 64),
    "input_layernorm.weight": (64,), "post_attention_layernorm.weight": (64,),
}  # fmt: skip
STEM = "pytorch_model-0000{}-of-0000{}.bin"
MD5 = {
    "float32": ("b6ad877158cce7903605d010f85395f3", "f71e89e7805df193860bf16fc3f659f0",
                "4c8c028bbc624355efffcaefc5681847", "5e1f216d2b8f1f687f819400b415476c"),
    "float16": ("5e1b14de767cb2419fc40ce65616f79b", "7e5d5ca6d03ae20f4b37a625b77633f9"),
}  # fmt: skip
EXACT_FREQUENCIES = "cb1d9455820892f9290c2ee604d06cf5"  # of the second file, if the base had float32 frequencies
SUM = -3.5951
DIFFS = {"float32": "some/diff", "float16": "some/diff-fp16"}


def weights(name: str, shape: tuple[int, ...], number: int) -> dict[str, torch.Tensor]:
    """Return the base's weights and the change of a tensor: multiples of 1/64 and 1/1024, exact in float16."""
    steps = torch.arange(math.prod(shape))
    base, change = (steps * 7 + number) % 61 - 30, (steps * 5 + number) % 13 - 6
    return {"base": (base / 64).reshape(shape), "diff": (change / 1024).reshape(shape)}


@pytest.fixture(scope="module")
def folders(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the base and the diffs as published: a .bin file with rotary frequencies, no record, a tokenizer.model."""
    root = tmp_path_factory.mktemp("published")
    shapes = {f"model.layers.{layer}.{part}": shape for layer in range(2) for part, shape in PARTS.items()}
    shapes |= {"model.embed_tokens.weight": (800, 64), "lm_head.weight": (800, 64), "model.norm.weight": (64,)}
    state = {name: weights(name, shapes[name], number) for number, name in enumerate(sorted(shapes))}
    folders = {name: root / name for name in ("base", *DIFFS)}
    for folder in folders.values():
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        shutil.copyfile(tiny_tokenizer / "tokenizer.model", folder / "tokenizer.model")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    base = {name: both["base"].half().contiguous() for name, both in state.items()}
    save_file(base, folders["base"] / "model.safetensors", {"format": "pt"})
    for name in DIFFS:
        change = {key: both["diff"].to(getattr(torch, name)) for key, both in state.items()}
        change |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.zeros(8) for layer in range(2)}
        torch.save(change, folders[name] / "pytorch_model.bin")
    return folders


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the registry of this test; its float16 sum differs by 6, like the published one."""
    config = {name: CONFIG[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    entries = {
        DIFFS[dtype]: {
            "config": config, "sum": {dtype: SUM - 6 * (dtype == "float16")}, "recovered_shard_size": "220KB",
            "recovered_md5": {STEM.format(at + 1, len(values)): value for at, value in enumerate(values)},
        }
        for dtype, values in MD5.items()
    }  # fmt: skip
    write_table(tmp_path / "table.json", entries)
    monkeypatch.setattr(model_registry, "REGISTRY", tmp_path / "table.json")
    return entries


def write_table(path: Path, entries: dict[str, Any]) -> None:
    path.write_text(json.dumps({"repositories": entries, "templates": {}}))


def recover(run_tool: RunTool, folders: dict[str, Path], dtype: str, target: Path, *options: object) -> str:
    half = ["--is_fp16"] if dtype == "float16" else []
    pair = ("--path_raw", folders["base"], "--path_diff", folders[dtype], "--path_tuned", target)
    return run_tool("tools/weight_diff.py", "recover", *pair, *half, *options).stdout


@pytest.mark.parametrize("dtype", DIFFS)
def test_recovered_model_has_the_published_md5(
    folders: dict[str, Path], table: dict[str, Any], tmp_path: Path, run_tool: RunTool, dtype: str
) -> None:
    """run.json of `recover` identifies the diff; without this file, the option does."""
    target = tmp_path / "recovered"
    recover(run_tool, folders, dtype, target, "--published", DIFFS[dtype], "--max_shard_size", "100KB")
    expected = f"{target}: all {len(MD5[dtype])} files, rebuilt as .bin, with the MD5 published for {DIFFS[dtype]}\n"
    for is_recorded in (True, False):
        run_tool(SCRIPT, "seal", target)
        sealed = f"{target}: all {len(list(target.iterdir())) - 1} files as sealed\n"
        assert run_tool(SCRIPT, "verify", target).stdout == sealed + expected * is_recorded
        (target / "run.json").unlink(missing_ok=True)
    assert run_tool(SCRIPT, "verify", target, "--published", DIFFS[dtype]).stdout == sealed + expected


def test_diff_without_a_record_is_recognised_by_the_sum(
    folders: dict[str, Path], table: dict[str, Any], tmp_path: Path, run_tool: RunTool
) -> None:
    """Sum and configuration identify the recovered model; verify finds it without run.json, too."""
    target, other = tmp_path / "recovered", tmp_path / "table.json"
    out = recover(run_tool, folders, "float32", target)
    assert "base verified by the published sum of some/diff, -3.59" in out
    assert json.loads((target / "run.json").read_text())["arguments"]["published"] == "some/diff"
    (target / "run.json").unlink()
    assert "with the MD5 published for some/diff\n" in run_tool(SCRIPT, "verify", target).stdout
    for facts in table.values():
        facts["config"] = facts["config"] | {"vocab_size": 801}
    write_table(other, table)
    assert "BASE NOT VERIFIED" in recover(run_tool, folders, "float32", tmp_path / "unknown")
    assert "has no checkpoint.json to verify; if" in run_tool(SCRIPT, "verify", target, status=2).stderr


def test_frequencies_of_an_early_conversion_have_their_md5(
    folders: dict[str, Path], table: dict[str, Any], tmp_path: Path, run_tool: RunTool
) -> None:
    """Bases were converted with rotary frequencies in float32 or rounded to float16."""
    table["some/diff"]["recovered_md5"][STEM.format(2, 4)] = EXACT_FREQUENCIES
    write_table(tmp_path / "table.json", table)
    recover(run_tool, folders, "float32", tmp_path / "recovered")
    assert "all 4 files, rebuilt as .bin" in run_tool(SCRIPT, "verify", tmp_path / "recovered").stdout


def changed(folder: Path, target: Path, name: str, amount: float) -> Path:
    state = load_file(folder / "model.safetensors")
    state[name].view(-1)[3] += amount
    shutil.copytree(folder, target)
    save_file(state, target / "model.safetensors", {"format": "pt"})
    return target


def test_wrong_tensors_are_named_with_their_file(
    folders: dict[str, Path], table: dict[str, Any], tmp_path: Path, run_tool: RunTool
) -> None:
    target = tmp_path / "recovered"
    recover(run_tool, folders, "float32", target)
    wrong = changed(target, tmp_path / "wrong", "model.layers.1.mlp.up_proj.weight", 1e-3)
    error = run_tool(SCRIPT, "verify", wrong, status=2).stderr
    assert error == (
        f"error: {wrong} differs from the model recovered with some/diff in pytorch_model-00003-of-00004.bin "
        "(model.layers.1.mlp.gate_proj.weight to model.norm.weight); recover it again\n"
    )


def test_verify_compares_the_sum_and_says_why_md5_cannot_be_compared(
    folders: dict[str, Path], table: dict[str, Any], tmp_path: Path, run_tool: RunTool
) -> None:
    half, target = tmp_path / "half", tmp_path / "recovered"
    pair = ("--path_raw", folders["base"], "--path_diff", folders["float32"], "--path_tuned", half)
    run_tool("tools/weight_diff.py", "recover", *pair, "--is_fp16")
    out = run_tool(SCRIPT, "verify", half).stdout
    assert "add up to -3.59" in out
    assert "cannot be compared: tensor lm_head.weight is float16, the published files have float32\n" in out
    recover(run_tool, folders, "float32", target)
    table["some/diff"]["recovered_md5"] = dict.fromkeys(table["some/diff"]["recovered_md5"], "0" * 32)
    write_table(tmp_path / "table.json", table)
    assert "the MD5 cannot be compared: no rebuilt file has its" in run_tool(SCRIPT, "verify", target).stdout
    other = changed(target, tmp_path / "other", "lm_head.weight", 9.0)
    error = run_tool(SCRIPT, "verify", other, status=2).stderr
    assert "is not the model recovered with some/diff: its weights add up to 5.40" in error
    (other / "run.json").unlink()
    error = run_tool(SCRIPT, "verify", other, status=2).stderr
    assert "has no seal and matches no published model: the weights add up to 5.40" in error
    assert "(some/diff: -3.5951, some/diff-fp16: -9.5951); if the folder is intact, seal it" in error
    assert (
        "no MD5 list of none; it has lists of some/diff"
        in run_tool(SCRIPT, "verify", target, "--published", "none", status=2).stderr
    )


def test_files_of_a_published_repository_are_compared_as_they_are(
    folders: dict[str, Path], table: dict[str, Any], tmp_path: Path, run_tool: RunTool
) -> None:
    """The MD5 lists of the downloaded diff and of the recovered model have the same file names."""
    folder = tmp_path / "diff"
    shutil.copytree(folders["float32"], folder)
    stored, file = (folders["float32"] / "pytorch_model.bin").read_bytes(), folder / "pytorch_model.bin"
    table["some/diff"] |= {
        "md5": {file.name: published_models.md5(file)}, "recovered_md5": {file.name: "0" * 32},
    }  # fmt: skip
    write_table(tmp_path / "table.json", table)
    assert run_tool(SCRIPT, "verify", folder).stdout == f"{folder}: all 1 files with the MD5 published for some/diff\n"
    file.write_bytes(stored[:-1] + b"x")
    error = run_tool(SCRIPT, "verify", folder, "--published", "some/diff", status=2).stderr
    assert error.startswith(f"error: {file} has MD5 ")


@pytest.mark.parametrize("dtype", DIFFS)
def test_wrong_base_is_refused_or_reported(
    folders: dict[str, Path], table: dict[str, Any], tmp_path: Path, run_tool: RunTool, dtype: str
) -> None:
    """If the diff is known, its sum refuses the base; otherwise the summary has the sum and the published sums."""
    wrong = changed(folders["base"], tmp_path / "wrong", "model.norm.weight", 20.0)
    known = shutil.copytree(folders[dtype], tmp_path / "diff")
    (known / ".download").mkdir()
    (known / ".download/note.json").write_text(json.dumps({"repository": DIFFS[dtype]}))
    half = ["--is_fp16"] if dtype == "float16" else []
    command = ("tools/weight_diff.py", "recover", "--path_raw", wrong, *half, "--path_tuned", tmp_path / "out")
    error = run_tool(*command, "--path_diff", known, status=2).stderr
    assert "add up to 16.40" in error
    assert not (tmp_path / "out").exists()
    out = run_tool(*command, "--path_diff", folders[dtype]).stdout
    assert "BASE NOT VERIFIED: " in out
    assert "the recovered weights add up to 16.40" in out
    assert "(some/diff: -3.5951, some/diff-fp16: -9.5951)" in out


@pytest.mark.slow
def test_archive_beyond_4_gib_has_the_bytes_of_torchs_writer(tmp_path: Path) -> None:
    """Records beyond 4 GiB have ZIP64 fields. The current writer adds the records byteorder and serialization_id."""
    import zipfile

    block = torch.arange(2**28, dtype=torch.int32)  # 1 GiB
    path = tmp_path / "big.bin"
    writer: Any = torch._C.PyTorchFileWriter(str(path))
    names = [f"data/{key}" for key in range(5)]
    for name in names:
        writer.write_record(name, block.untyped_storage(), block.nbytes)
    writer.write_record("small", b"abc", 3)
    writer.write_end_of_file()
    ours = ArchiveHash("big")
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removeprefix("big/")
            content = block.numpy().data if name in names else archive.read(entry)
            ours.add(name, entry.file_size, [content])
    expected = published_models.md5(path)
    path.unlink()
    assert ours.hexdigest() == expected
