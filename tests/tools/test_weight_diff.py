"""tools/weight_diff.py: exact recovery restores every bit; bad input is refused and leaves nothing."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import weight_diff
from blake3 import blake3
from changed_weights import additive, bytes_of, left_behind, nudged, variant
from checkpoint_io import checkpoint_folders
from checkpoint_seals.seal_writer import hashed_weights
from conftest import REPOSITORY, RunScript
from in_process import RunTool
from safetensors.torch import load_file, save_file

SCRIPT = "tools/weight_diff.py"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@pytest.fixture(scope="module")
def diff(tiny_checkpoint: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory, run_tool: RunTool) -> Path:
    folder = tmp_path_factory.mktemp("diff") / "diff"
    run_tool(SCRIPT, "make_diff", "--path_raw", tiny_checkpoint, "--path_tuned", tuned, "--path_diff", folder)
    return folder


def test_exact_recovery_equals_tuned_folder(
    tiny_checkpoint: Path, tuned: Path, diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    out = tmp_path / "new/recovered"
    run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, "--path_diff", diff, "--path_tuned", out)
    assert bytes_of(out) == bytes_of(tuned)
    for file in tuned.iterdir():
        if file.name not in ("run.json", "model.safetensors"):
            assert (out / file.name).read_bytes() == file.read_bytes()
    run = json.loads((out / "run.json").read_text())
    assert run["script"] == "tools/weight_diff.py recover"
    assert run["parents"]["diff"]["parents"]["tuned"] == {"script": "pretrain/train.py"}
    assert left_behind(out.parent) == []


def test_exact_diff_keeps_mixed_types_and_added_rows(tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool) -> None:
    base = load_file(tiny_checkpoint / "model.safetensors")
    raw = variant(tiny_checkpoint, tmp_path / "raw", {name: value.half() for name, value in base.items()})
    state = nudged(base)
    for number, name in enumerate(sorted(state)):
        state[name] = state[name].to((torch.float32, torch.float16, torch.bfloat16)[number % 3])
    state["lm_head.weight"] = torch.cat([state["lm_head.weight"], torch.randn(3, 64).to(state["lm_head.weight"].dtype)])
    new = variant(tiny_checkpoint, tmp_path / "tuned", state | {"extra": torch.arange(5)})
    run_tool(SCRIPT, "make_diff", "--path_raw", raw, "--path_tuned", new, "--path_diff", tmp_path / "diff")
    run_tool(
        SCRIPT, "recover", "--path_raw", raw, "--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "recovered"
    )
    assert bytes_of(tmp_path / "recovered") == bytes_of(new)


def test_wrong_base_is_refused_before_writing(
    tiny_checkpoint: Path, diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    state = load_file(tiny_checkpoint / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"].view(torch.int32)[3, 5] ^= 1
    wrong = variant(tiny_checkpoint, tmp_path / "wrong", state)
    out = tmp_path / "out"
    done = run_tool(SCRIPT, "recover", "--path_raw", wrong, "--path_diff", diff, "--path_tuned", out, status=2)
    assert f"{wrong} is not the base of {diff}" in done.stderr
    assert "model.layers.1.mlp.down_proj.weight" in done.stderr
    assert not out.exists()
    assert left_behind(tmp_path) == []


def test_recover_refuses_diff_with_flipped_bit(
    tiny_checkpoint: Path, diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    damaged = shutil.copytree(diff, tmp_path / "diff")
    content = bytearray((damaged / "diff.safetensors").read_bytes())
    content[-len(content) // 4] ^= 4
    (damaged / "diff.safetensors").write_bytes(content)
    done = run_tool(
        SCRIPT,
        "recover",
        "--path_raw",
        tiny_checkpoint,
        "--path_diff",
        damaged,
        "--path_tuned",
        tmp_path / "o",
        status=2,
    )
    assert str(damaged / "diff.safetensors") in done.stderr
    assert "tensor model" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diff"]


@pytest.mark.parametrize("exact", [True, False])
def test_recover_refuses_diff_with_a_changed_small_file(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, exact: bool
) -> None:
    diff = tmp_path / "diff"
    pair = ("--path_raw", tiny_checkpoint, "--path_tuned", tuned, "--path_diff", diff)
    run_tool(SCRIPT, "make_diff", *pair, f"--exact={exact}")
    recorded = json.loads((diff / "diff.json").read_text())["files"]
    small = {path.name for path in diff.iterdir() if path.suffix != ".safetensors"} - {"diff.json", "run.json"}
    assert recorded == {name: blake3((diff / name).read_bytes()).hexdigest() for name in small}
    assert {"tokenizer.json", "tokenizer.model", "config.json", "chat_template.jinja"} <= small
    (diff / "README.md").write_text("not recorded, and not compared")
    out = ("--path_raw", tiny_checkpoint, "--path_diff", diff, "--path_tuned", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja"):
        content = (diff / name).read_bytes()
        (diff / name).write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:] if len(content) > 50 else b"")
        done = run_tool(SCRIPT, "recover", *out, status=2)
        assert done.stderr == f"error: {diff / name} differs from its hash in diff.json; download it again\n"
        (diff / name).unlink()
        done = run_tool(SCRIPT, "recover", *out, status=2)
        assert done.stderr == f"error: {diff / name}, which diff.json lists, is missing; download it again\n"
        (diff / name).write_bytes(content)
    template = REPOSITORY / "finetune/templates/alpaca.jinja"
    run_tool(
        "tools/set_template.py", "--model_path", diff, "--template_path", template, "--output_dir", tmp_path / "new"
    )
    run_tool(SCRIPT, "recover", *out[:2], "--path_diff", tmp_path / "new", *out[4:])
    assert (tmp_path / "out/chat_template.jinja").read_text() == template.read_text()


def test_diff_without_hashes_of_small_files_recovers_with_a_notice(
    tiny_checkpoint: Path, tuned: Path, diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    old = shutil.copytree(diff, tmp_path / "old")
    record = json.loads((old / "diff.json").read_text())
    del record["files"]
    (old / "diff.json").write_text(json.dumps(record))
    out = ("--path_raw", tiny_checkpoint, "--path_diff", old, "--path_tuned", tmp_path / "out")
    done = run_tool(SCRIPT, "recover", *out)
    fact = f"{old} has no hashes of its tokenizer and other small files"
    assert done.stderr == f"notice: {fact}, so these are not verified\n"
    assert bytes_of(tmp_path / "out") == bytes_of(tuned)


def no_tensor(raw: Path, tuned: Path) -> None:
    state = load_file(raw / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, raw / "model.safetensors")


def no_layers_tensor(raw: Path, tuned: Path) -> None:
    state = load_file(tuned / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tuned / "model.safetensors")


def other_shape(raw: Path, tuned: Path) -> None:
    save_file(load_file(raw / "model.safetensors") | {"model.norm.weight": torch.ones(65)}, raw / "model.safetensors")


def no_tokenizer(raw: Path, tuned: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (tuned / name).unlink()


def config_of(key: str, value: object) -> Callable[[Path, Path], None]:
    def spoil(raw: Path, tuned: Path) -> None:
        content = json.loads((tuned / "config.json").read_text())
        (tuned / "config.json").write_text(json.dumps(content | {key: value}))

    return spoil


BAD = {
    "layers": (config_of("num_hidden_layers", "two"), [], ["tuned/config.json is damaged (num_hidden_layers is 'two'"]),
    "no layers": (config_of("num_hidden_layers", None), [], ["(num_hidden_layers is None, not a positive integer)"]),
    "many layers": (config_of("num_hidden_layers", 10**15), [], ["tuned/config.json is damaged (num_hidden_layers is"]),
    "vocabulary": (config_of("vocab_size", [800]), ["--exact=False"], ["tuned/config.json is damaged (vocab_size is"]),
    "cut off": (lambda raw, tuned: (raw / "config.json").write_text("{"), [], ["raw/config.json is damaged (Expect"]),
    "no folder": (lambda raw, tuned: shutil.rmtree(tuned), [], ["tuned is not a folder", "--path_tuned"]),
    "no checkpoint": (lambda raw, tuned: (raw / "config.json").unlink(), [], ["raw has no config.json"]),
    "no weights": (lambda raw, tuned: (raw / "model.safetensors").unlink(), [], ["raw has none of model.safetensors"]),
    "no tensor": (no_tensor, ["--exact=False"], ["raw lacks tensor model.norm.weight", "config.json requires"]),
    "no tensor in a layer": (no_layers_tensor, [], ["tuned lacks tensor model.layers.1.mlp.up_proj.weight"]),
    "other shape": (other_shape, [], ["tensor model.norm.weight is [65]", "[64]"]),
    "other shape, additive": (other_shape, ["--exact=False"], ["tensor model.norm.weight is [65]", "[64]"]),
    "two kinds": (lambda raw, tuned: None, ["--is_fp16"], ["--exact=False"]),
    "no tokenizer": (no_tokenizer, [], ["tuned has no tokenizer", "tokenizer.json"]),
    "unknown": (lambda raw, tuned: None, ["--divice", "cuda"], ["unknown option --divice"]),
    "no boolean": (lambda raw, tuned: None, ["--exact", "maybe"], ["--exact takes True or False", "'maybe'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, case: str
) -> None:
    spoil, options, messages = BAD[case]
    raw, new = shutil.copytree(tiny_checkpoint, tmp_path / "raw"), shutil.copytree(tuned, tmp_path / "tuned")
    spoil(raw, new)
    done = run_tool(
        SCRIPT,
        "make_diff",
        "--path_raw",
        raw,
        "--path_tuned",
        new,
        "--path_diff",
        tmp_path / "diff",
        *options,
        status=2,
    )
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in messages:
        assert part in done.stderr
    assert not (tmp_path / "diff").exists()
    assert left_behind(tmp_path) == []


def test_target_with_files_is_refused_and_unchanged(
    tiny_checkpoint: Path, diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    (tmp_path / "out").mkdir()
    arguments = (
        SCRIPT,
        "recover",
        "--path_raw",
        tiny_checkpoint,
        "--path_diff",
        diff,
        "--path_tuned",
        tmp_path / "out",
    )
    run_tool(*arguments)
    before = bytes_of(tmp_path / "out")
    done = run_tool(*arguments, status=2)
    assert f"{tmp_path / 'out'} exists already" in done.stderr
    assert bytes_of(tmp_path / "out") == before


def test_small_disk_is_refused_before_writing(
    tiny_checkpoint: Path, diff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_folders.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(ValueError, match=r"out needs 0\.00 GB more and its disk has 0\.00 GB free"):
        weight_diff.recover(str(tiny_checkpoint), str(diff), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_leaves_nothing(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_script: RunScript
) -> None:
    done = run_script(
        SCRIPT, "make_diff", "--path_raw", tiny_checkpoint, "--path_tuned", tuned, "--path_diff", tmp_path / "diff",
        status=2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert f"error: {tmp_path / 'diff'} cannot be written (File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unwritable_target_is_refused_by_name(
    tiny_checkpoint: Path, diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    (tmp_path / "file").write_text("")
    pair = ("--path_raw", tiny_checkpoint, "--path_diff", diff, "--path_tuned")
    assert "cannot be written" in run_tool(SCRIPT, "recover", *pair, "/proc/out", status=2).stderr
    done = run_tool(SCRIPT, "recover", *pair, tmp_path / "file/out", status=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_published_options_without_effect_are_accepted_with_notice(
    tiny_checkpoint: Path, diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    pair = ("--path_raw", tiny_checkpoint, "--path_diff", diff, "--path_tuned", tmp_path / "out")
    done = run_tool(SCRIPT, "recover", *pair, "--device", "cpu", "--check_integrity_naively", "False")
    notices = [line.split(" has no effect")[0] for line in done.stderr.splitlines()]
    assert notices == ["notice: --device", "notice: --check_integrity_naively"]


def test_inspect_prints_base_and_size_of_diff(
    tiny_checkpoint: Path, tuned: Path, diff: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    printed = run_tool(SCRIPT, "inspect", diff).stdout
    base, new = (hashed_weights(folder)[2] for folder in (tiny_checkpoint, tuned))
    size = sum(file.stat().st_size for file in diff.glob("diff*"))
    assert f"bytes       {size:,}, " in printed
    assert f"needs       the base with weights {base}" in printed
    assert f"gives       weights {new}" in printed
    assert "model.layers.1 " in printed
    added = additive(tmp_path / "added", tiny_checkpoint, tuned)
    printed = run_tool(SCRIPT, "inspect", added).stdout
    assert "additive diff (F32); recovery is not bit-exact" in printed
    assert "a base that is not recorded" in printed
    assert "root mean square" in printed


def test_diff_without_rank_search_stores_no_factors(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    tuned = ("--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted", tmp_path / "tuned")
    run_tool(SCRIPT, "merge", *tuned)
    pair = ("--path_raw", tiny_checkpoint, "--path_tuned", tmp_path / "tuned", "--path_diff")
    assert "low-rank" in run_tool(SCRIPT, "make_diff", *pair, tmp_path / "searched").stdout
    assert "low-rank" not in run_tool(SCRIPT, "make_diff", *pair, tmp_path / "plain", "--low_rank=False").stdout


def test_max_shard_size_splits_diff_and_recovered_model(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    """Diff and recovered model are in shards, and the fingerprint is that of the tuned model."""
    few = ("--max_shard_size", "150KB")
    pair = ("--path_raw", tiny_checkpoint, "--path_tuned", tuned)
    run_tool(SCRIPT, "make_diff", *pair, "--path_diff", tmp_path / "diff", *few)
    assert len(list((tmp_path / "diff").glob("diff-*.safetensors"))) > 2
    out = ("--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "back")
    run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, *out, *few)
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 2
    assert hashed_weights(tmp_path / "back")[2] == hashed_weights(tuned)[2]
    assert run_tool("tools/checkpoint.py", "compare", tmp_path / "back", tuned).stdout.startswith("equal: ")


@pytest.mark.slow
def test_diff_memory_does_not_grow_with_model(tmp_path: Path) -> None:
    """Diff, recovery and merging of 200 MB take less than 64 MiB of anonymous memory and 256 MiB of resident memory."""
    from bench_weights import make_models, run_command

    make_models(tmp_path, "test", rank=16, additive=False)
    for role in ("make_diff", "recover", "merge"):
        usage = run_command(role, tmp_path)
        assert usage.anonymous_mib < 64, role
        assert usage.resident_mib < 256, role
    tuned, recovered = (hashed_weights(tmp_path / name)[2] for name in ("tuned", "recovered"))
    assert tuned == recovered


def test_file_modes_follow_umask(tiny_checkpoint: Path, diff: Path, tmp_path: Path, run_tool: RunTool) -> None:
    before = os.umask(0o027)
    try:
        out = ("--path_diff", diff, "--path_tuned", tmp_path / "out")
        run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, *out)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}, modes
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
