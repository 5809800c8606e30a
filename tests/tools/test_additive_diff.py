"""Additive diffs: the published kind, its arithmetic, and the check of the base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import weight_diff
from changed_weights import additive, left_behind, nudged, variant
from checkpoint_io.tensors import Spec, is_buffer
from hub_download import model_registry
from in_process import RunTool
from safetensors.torch import load_file, save_file
from weight_diffs import additive_diff

SCRIPT = "tools/weight_diff.py"


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_additive_diff_equals_published_arithmetic(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, half: bool
) -> None:
    flag, dtype = (["--is_fp16"], torch.float16) if half else ([], torch.float32)
    raw, new = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tuned))
    added, out = tmp_path / "diff", tmp_path / "recovered"
    run_tool(
        SCRIPT,
        "make_diff",
        "--path_raw",
        tiny_checkpoint,
        "--path_tuned",
        tuned,
        "--path_diff",
        added,
        "--exact=False",
        *flag,
    )
    done = run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, "--path_diff", added, "--path_tuned", out, *flag)
    assert "from an additive diff, not bit-exact; base verified by its fingerprint" in done.stdout
    difference, recovered = (load_file(folder / "model.safetensors") for folder in (added, out))
    for name in new:
        expected = new[name].to(dtype) - raw[name].to(dtype)
        assert torch.equal(difference[name], expected)
        assert torch.equal(recovered[name], expected + raw[name].to(dtype))
    assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert (out / "chat_template.jinja").is_file()


def test_value_too_large_for_float16_is_refused_and_option_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tuned = shutil.copytree(tiny_checkpoint, tmp_path / "tuned")
    state = {name: tensor.float() for name, tensor in load_file(tuned / "model.safetensors").items()}
    state["model.norm.weight"][0] = 1e5
    save_file(state, tuned / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor model\.norm\.weight .*NaN or infinity; .* or omit --is_fp16"):
        weight_diff.make_diff(str(tiny_checkpoint), str(tuned), str(tmp_path / "diff"), is_fp16=True, exact=False)


def test_published_shards_of_bin_files_recover(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    """The diff has .bin shards with an index, and rotary frequencies, which current bases no longer store."""
    raw, new = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tuned))
    added = tmp_path / "diff"
    shutil.copytree(tiny_checkpoint, added, ignore=shutil.ignore_patterns("*.safetensors"))
    state = {name: new[name] - raw[name] for name in new} | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)
    }
    names, places = list(state), dict[str, str]()
    for number, part in enumerate((names[:4], names[4:]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, added / file)
        places |= dict.fromkeys(part, file)
    (added / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    out = tmp_path / "recovered"
    run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, "--path_diff", added, "--path_tuned", out)
    recovered = load_file(out / "model.safetensors")
    assert recovered.keys() == new.keys()
    assert all(torch.equal(recovered[name], raw[name] + state[name]) for name in new)


def test_recover_refuses_other_base_of_additive_diff(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    state = load_file(tiny_checkpoint / "model.safetensors")
    state["model.norm.weight"].view(torch.int32)[3] ^= 1
    wrong = variant(tiny_checkpoint, tmp_path / "wrong", state)
    pair = ("--path_raw", tiny_checkpoint, "--path_tuned", tuned, "--path_diff", tmp_path / "diff")
    printed = run_tool(SCRIPT, "make_diff", *pair, "--exact=False").stdout
    assert "of the tuned weights; recovery is not bit-exact" in printed
    out = ("--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "out")
    done = run_tool(SCRIPT, "recover", "--path_raw", wrong, *out, status=2)
    assert f"{wrong} is not the base of {tmp_path / 'diff'}" in done.stderr
    done = run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, *out, "--published", "some/diff", status=2)
    assert "diff.json identifies the base of this diff; omit --published" in done.stderr
    assert left_behind(tmp_path) == []


BUFFERS = {  # constants of old checkpoints, named as in LLaMA, GPT-NeoX and GPT-2
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(8),
    "model.rotary_emb.original_inv_freq": torch.rand(8),
    "model.layers.0.attention.masked_bias": torch.tensor(-1e9),
    "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(),
}


@pytest.mark.parametrize("exact", [True, False])
def test_diff_fits_its_base_that_was_saved_again_without_buffers(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, exact: bool
) -> None:
    raw, new = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tuned))
    old_base = variant(tiny_checkpoint, tmp_path / "old", raw | BUFFERS)
    old_tuned = variant(tuned, tmp_path / "tuned", new | BUFFERS)
    pair = ("--path_raw", old_base, "--path_tuned", old_tuned, "--path_diff", tmp_path / "diff")
    run_tool(SCRIPT, "make_diff", *pair, f"--exact={exact}")
    expected = new | BUFFERS if exact else {name: new[name] - raw[name] + raw[name] for name in new}
    for base in (tiny_checkpoint, old_base):
        out = tmp_path / f"from-{base.name}"
        run_tool(SCRIPT, "recover", "--path_raw", base, "--path_diff", tmp_path / "diff", "--path_tuned", out)
        recovered = load_file(out / "model.safetensors")
        assert recovered.keys() == expected.keys()
        assert all(torch.equal(recovered[name], expected[name]) for name in expected)
    raw["model.norm.weight"].view(torch.int32)[3] ^= 1
    wrong = variant(tiny_checkpoint, tmp_path / "wrong", raw)
    other = ("--path_raw", wrong, "--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "no")
    assert f"{wrong} is not the base of" in run_tool(SCRIPT, "recover", *other, status=2).stderr


def test_trained_bias_of_attention_is_not_a_buffer() -> None:
    assert [is_buffer(Spec(name, "F32", tuple(value.shape))) for name, value in BUFFERS.items()] == [True] * 4
    for name in (
        "h.0.attn.bias",
        "h.0.attn.c_attn.bias",
        "model.layers.0.self_attn.q_proj.bias",
        "position_ids.weight",
    ):
        assert not is_buffer(Spec(name, "F32", (8,)))


@pytest.mark.parametrize("source", ["file", "download", "option"])
def test_recover_refuses_base_that_contradicts_published_sum(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """With the published sum of all recovered weights, a wrong base is refused before anything is written."""
    diff = additive(tmp_path / "diff", tiny_checkpoint, tuned)
    total = float(sum(value.double().sum() for value in load_file(tuned / "model.safetensors").values()))
    option = ["--published", "some/diff"] if source == "option" else []
    if source == "file":
        (diff / "checksum_psum.txt").write_text(f"{total:.4f}\n")
    else:
        table = tmp_path / "table.json"
        facts = {"some/diff": {"sum": {"float32": total}}}
        table.write_text(json.dumps({"repositories": facts, "templates": {}}))
        monkeypatch.setattr(model_registry, "REGISTRY", table)
        if source == "download":
            (diff / ".download").mkdir()
            (diff / ".download/note.json").write_text('{"repository": "some/diff"}')
    out = ("--path_diff", diff, "--path_tuned")
    done = run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, *out, tmp_path / "right", *option)
    assert f"base verified by the published sum {total:.4f}" in done.stdout
    state = load_file(tiny_checkpoint / "model.safetensors")
    state["lm_head.weight"] += 0.01
    wrong = variant(tiny_checkpoint, tmp_path / "wrong", state)
    done = run_tool(SCRIPT, "recover", "--path_raw", wrong, *out, tmp_path / "no", *option, status=2)
    assert "the base is wrong or a file is damaged" in done.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("named", [True, False], ids=["named", "by sum"])
def test_rows_that_the_base_lacks_are_filled_with_its_mean_row_for_alpaca_diffs(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """As in stanford_alpaca, the base gets a row for [PAD], the mean of its rows, before it is subtracted."""
    raw, new = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tuned))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        raw[name] += 0.5  # the mean rows are far from 0
    base = variant(tiny_checkpoint, tmp_path / "base", raw)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        raw[name] = torch.cat([raw[name], raw[name].mean(0, keepdim=True)])
        new[name] = torch.cat([new[name], torch.randn(1, new[name].shape[1])])
    diff = variant(tuned, tmp_path / "diff", {name: new[name] - raw[name] for name in new})
    file, config = diff / "config.json", {"vocab_size": new["lm_head.weight"].shape[0]}
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    facts = {"sum": {"float32": float(sum(value.double().sum() for value in new.values()))}, "added_rows": "mean"}
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"repositories": {"some/diff": facts | {"config": config}}, "templates": {}}))
    monkeypatch.setattr(model_registry, "REGISTRY", table)
    option = ["--published", "some/diff"] if named else []
    out = tmp_path / "out"
    done = run_tool(SCRIPT, "recover", "--path_raw", base, "--path_diff", diff, "--path_tuned", out, *option)
    assert "base verified by the published sum" in done.stdout
    recovered = load_file(out / "model.safetensors")
    for name, value in new.items():
        torch.testing.assert_close(recovered[name], value, rtol=0, atol=1e-6)


def test_published_sums_are_found_by_repository(tmp_path: Path) -> None:
    """published.json has the sums that the recovery scripts of these diffs compare with."""
    (tmp_path / ".download").mkdir()
    sums = {
        "zjunlp/zhixi-13b-diff": (94052.2891, "float32"), "zjunlp/zhixi-13b-diff-fp16": (94046.1875, "float16"),
        "tatsu-lab/alpaca-7b-wdiff": (50637.1836, "float32"), "other/diff": None,
    }  # fmt: skip
    for repository, expected in sums.items():
        (tmp_path / ".download/note.json").write_text(json.dumps({"repository": repository}))
        found = (*expected, repository) if expected else None
        assert additive_diff.published_sum(tmp_path, "") == found
        if expected:
            assert additive_diff.published_sum(Path("none"), repository) == found
    with pytest.raises(ValueError, match="has no sum for other/diff"):
        additive_diff.published_sum(Path("none"), "other/diff")


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_diff_made_by_published_code_recovers(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, half: bool
) -> None:
    """transformers loads both models, subtracts and saves; recovery equals loading and adding with transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def loaded(folder: Path, dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    model, raw = loaded(tuned, torch.float32), loaded(tiny_checkpoint, torch.float32).state_dict()
    for name, value in model.state_dict().items():
        value.add_(-raw[name])
    model.save_pretrained(tmp_path / "diff")
    AutoTokenizer.from_pretrained(tuned).save_pretrained(tmp_path / "diff")
    pair = ("--path_raw", tiny_checkpoint, "--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "out")
    run_tool(SCRIPT, "recover", *pair, *(["--is_fp16", "True"] if half else []))
    dtype = torch.float16 if half else torch.float32
    published, raw = loaded(tmp_path / "diff", dtype), loaded(tiny_checkpoint, dtype).state_dict()
    ours = loaded(tmp_path / "out", dtype).state_dict()
    for name, value in published.state_dict().items():
        assert torch.equal(ours[name], value.add_(raw[name]))
    assert next(iter(load_file(tmp_path / "out/model.safetensors").values())).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("growth", [0.8, 1.0, 1.2])
def test_full_models_are_refused_and_diffs_are_not(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, dtype: torch.dtype, growth: float
) -> None:
    """The norm weights vary as in LLaMA; tuning scales all weights by `growth`. The seal of the diff says "full"."""
    raw = load_file(tiny_checkpoint / "model.safetensors")
    torch.manual_seed(3)
    for name in [name for name in raw if name.endswith("norm.weight")]:
        raw[name] = 0.3 * torch.rand_like(raw[name]) + (1.5 if name == "model.norm.weight" else 0.05)
    new = {name: value * growth for name, value in nudged(raw).items()}
    base = variant(tiny_checkpoint, tmp_path / "base", raw)
    tuned = variant(tiny_checkpoint, tmp_path / "tuned", {name: value.to(dtype) for name, value in new.items()})
    diff = variant(tiny_checkpoint, tmp_path / "diff", {name: (new[name] - raw[name]).to(dtype) for name in new})
    run_tool("tools/checkpoint.py", "seal", diff)
    assert json.loads((diff / "checkpoint.json").read_text())["kind"] == "full"
    recover = (SCRIPT, "recover", "--path_raw", base, "--path_tuned", tmp_path / "out", "--path_diff")
    for model in (base, tuned):
        done = run_tool(*recover, model, status=2)
        assert f"{model} is a full model, not a diff (its norm weights are near the base's" in done.stderr
        done = run_tool(SCRIPT, "inspect", model, status=2)
        assert f"{model} is a full model, not a diff (its norm weights are not near 0)" in done.stderr
    assert not (tmp_path / "out").exists()
    run_tool(SCRIPT, "inspect", diff)
    run_tool(*recover, diff)
    recovered = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(value, (new[name] - raw[name]).to(dtype) + raw[name]) for name, value in recovered.items())


def test_additive_diff_is_refused_where_a_model_is_needed(
    tiny_checkpoint: Path, tuned: Path, adapter: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    diff, out = tmp_path / "diff", tmp_path / "out"
    pair = ("--path_raw", tiny_checkpoint, "--path_tuned", tuned, "--path_diff", diff)
    run_tool(SCRIPT, "make_diff", *pair, "--exact=False")
    commands: tuple[tuple[object, ...], ...] = (
        ("make_diff", "--path_raw", tiny_checkpoint, "--path_tuned", diff, "--path_diff", out),
        ("make_diff", "--path_raw", diff, "--path_tuned", tuned, "--path_diff", out),
        ("recover", "--path_raw", diff, "--path_diff", diff, "--path_tuned", out),
        ("merge", "--path_zhixi", diff, "--path_lora", adapter, "--path_sfted", out),
    )
    for command in commands:
        assert f"{diff} is a diff, not a model; recover the model" in run_tool(SCRIPT, *command, status=2).stderr
    done = run_tool("tools/export_gguf.py", "--model_path", diff, "--output_file", tmp_path / "x.gguf", status=2)
    assert f"{diff} is a diff, not a model; recover the model" in done.stderr
    assert left_behind(tmp_path) == []


def test_damaged_record_of_additive_diff_is_named(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    diff = additive(tmp_path / "diff", tiny_checkpoint, tuned)
    for content in ("{", '{"format": "additive-diff"}', '{"format": "additive-diff", "base": 3}', "{}"):
        (diff / "diff.json").write_text(content)
        out = ("--path_raw", tiny_checkpoint, "--path_diff", diff, "--path_tuned", tmp_path / "out")
        for command in (("recover", *out), ("inspect", diff)):
            done = run_tool(SCRIPT, *command, status=2)
            assert done.stderr.startswith(f"error: {diff / 'diff.json'} is ")
            assert done.stderr.endswith("again\n")


@pytest.mark.parametrize("source", ["make_diff", "published code"])
def test_embedding_of_tied_base_is_subtracted_from_output_matrix(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, source: str
) -> None:
    """Tuning untied the matrices; the state dict of the published script has the tied matrix under both names."""
    raw, new = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tuned))
    del raw["lm_head.weight"]
    base, embedding = variant(tiny_checkpoint, tmp_path / "base", raw), raw["model.embed_tokens.weight"]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    expected = {name: value - raw.get(name, embedding) for name, value in new.items()}
    if source == "make_diff":
        pair = ("--path_raw", base, "--path_tuned", tuned, "--path_diff", tmp_path / "diff")
        run_tool(SCRIPT, "make_diff", *pair, "--exact=False")
        stored = load_file(tmp_path / "diff/model.safetensors")
        assert all(torch.equal(stored[name], value) for name, value in expected.items())
    else:
        variant(tuned, tmp_path / "diff", expected)
    pair = ("--path_raw", base, "--path_diff", tmp_path / "diff", "--path_tuned", tmp_path / "out")
    run_tool(SCRIPT, "recover", *pair)
    recovered = load_file(tmp_path / "out/model.safetensors")
    assert recovered.keys() == new.keys()
    for name, value in recovered.items():
        assert torch.equal(value, expected[name] + raw.get(name, embedding))
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("kind", ["exact", "recorded", "published"])
def test_exchanged_base_and_diff_are_refused(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, kind: str
) -> None:
    """The sum of the weights would be the same, but the folder would get the base's tokenizer and template."""
    diff, out = tmp_path / "diff", tmp_path / "out"
    pair = ("--path_raw", tiny_checkpoint, "--path_tuned", tuned, "--path_diff", diff, f"--exact={kind == 'exact'}")
    run_tool(SCRIPT, "make_diff", *pair)
    if kind == "published":
        (diff / "diff.json").unlink()
    exchanged = ("--path_raw", diff, "--path_diff", tiny_checkpoint, "--path_tuned", out)
    done = run_tool(SCRIPT, "recover", *exchanged, status=2)
    assert done.stderr == (
        f"error: --path_raw {diff} is a diff and --path_diff {tiny_checkpoint} is not; exchange the two options\n"
    )
    assert not out.exists()


def test_base_that_contains_the_change_is_named(tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool) -> None:
    """The change is large, so the diff is nearer to base + change than to zero; the norm weights do not change."""
    raw = load_file(tiny_checkpoint / "model.safetensors")
    torch.manual_seed(4)
    new = {name: value + 9 * torch.randn_like(value) * (value.dim() == 2) for name, value in raw.items()}
    tuned = variant(tiny_checkpoint, tmp_path / "tuned", new)
    diff = additive(tmp_path / "diff", tiny_checkpoint, tuned)
    out = ("--path_diff", diff, "--path_tuned", tmp_path / "out")
    done = run_tool(SCRIPT, "recover", "--path_raw", tuned, *out, status=2)
    assert f"{tuned} is not the base of {diff}: it contains the change already" in done.stderr
    run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, *out)
    recovered = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.allclose(recovered[name], value, atol=1e-5) for name, value in new.items())
