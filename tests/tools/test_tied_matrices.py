"""Models whose embedding and output matrices are tied: merging, recovery and GGUF export keep their logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import export_gguf
import pytest
import torch
from in_process import RunTool
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

IDS = torch.arange(3, 23)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tied_base(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tiny checkpoint without an output matrix, with tie_word_embeddings."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("tied") / "base")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def two_matrices(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint with tie_word_embeddings; its two matrices differ."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "two")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def train_randomly(base: Path, folder: Path, **options: Any) -> None:
    """Save an adapter with random weights."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(load(base), LoraConfig(**(settings | options)))
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))


UNTYING = {
    "lora on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "lora on the output": {"target_modules": ["q_proj", "lm_head"]},
    "lora on both": {"target_modules": ["embed_tokens", "lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "saved output": {"modules_to_save": ["lm_head"]},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
}
TIED = {
    "neither": {},
    "tied lora": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "tied copy": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("case", [*UNTYING, *TIED])
def test_merged_tied_model_answers_like_the_adapter(
    tied_base: Path, tmp_path: Path, run_tool: RunTool, case: str
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    train_randomly(tied_base, adapter, **(UNTYING | TIED)[case])
    expected = logits(PeftModel.from_pretrained(load(tied_base), adapter))
    assert (expected - logits(load(tied_base))).abs().max() > 0.01
    done = run_tool(
        "tools/weight_diff.py", "merge", "--path_zhixi", tied_base, "--path_lora", adapter, "--path_sfted", out
    )
    torch.testing.assert_close(logits(load(out)), expected, rtol=1e-4, atol=1e-5)
    assert ("no longer tied" in done.stdout) == (case in UNTYING)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] == (case in TIED)
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) == (case in UNTYING)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_rows_added_to_a_tied_base_are_in_both_merged_matrices(
    tied_base: Path, tmp_path: Path, run_tool: RunTool, module: str
) -> None:
    """PEFT stores the enlarged matrix once; it also determines the logits of the added tokens."""
    model, ids = load(tied_base), torch.tensor([[3, 9, 800, 802, 4]])
    rows = model.config.vocab_size
    assert rows == 800
    torch.manual_seed(6)
    model.resize_token_embeddings(rows + 3)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", module], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        expected = adapted.eval()(ids).logits
    adapted.save_pretrained(str(tmp_path / "adapter"))
    out = ("--path_lora", tmp_path / "adapter", "--path_sfted", tmp_path / "out")
    run_tool("tools/weight_diff.py", "merge", "--path_zhixi", tied_base, *out)
    with torch.no_grad():
        merged = load(tmp_path / "out").eval()(ids).logits
    assert merged.shape == (1, 5, 803)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_own_output_matrix_of_a_base_marked_as_tied_is_merged_and_marked_untied(
    two_matrices: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    train_randomly(two_matrices, adapter)
    expected = logits(PeftModel.from_pretrained(load(two_matrices), adapter))
    run_tool("tools/weight_diff.py", "merge", "--path_zhixi", two_matrices, "--path_lora", adapter, "--path_sfted", out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    torch.testing.assert_close(logits(load(out)), expected, rtol=1e-4, atol=1e-5)


def test_identical_output_matrix_of_a_tied_base_is_stored_once(
    tied_base: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    base, adapter, out = shutil.copytree(tied_base, tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged"
    state = load_file(base / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, base / "model.safetensors", {"format": "pt"})
    train_randomly(tied_base, adapter, **TIED["tied copy"])
    run_tool("tools/weight_diff.py", "merge", "--path_zhixi", base, "--path_lora", adapter, "--path_sfted", out)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    expected = logits(PeftModel.from_pretrained(load(tied_base), adapter))
    torch.testing.assert_close(logits(load(out)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["exact", "additive"])
def test_recovered_model_answers_with_its_own_output_matrix(
    two_matrices: Path, tmp_path: Path, run_tool: RunTool, kind: str
) -> None:
    """Base and tuned model are marked as tied, and each stores an output matrix of its own."""
    state = load_file(two_matrices / "model.safetensors")
    tuned = shutil.copytree(two_matrices, tmp_path / "tuned")
    changed = {name: weight * 1.25 if weight.ndim > 1 else weight for name, weight in state.items()}
    save_file(changed, tuned / "model.safetensors", {"format": "pt"})
    diff, out = tmp_path / "diff", tmp_path / "out"
    more = ("--exact=False",) if kind == "additive" else ()
    tool = "tools/weight_diff.py"
    run_tool(tool, "make_diff", "--path_raw", two_matrices, "--path_tuned", tuned, "--path_diff", diff, *more)
    run_tool(tool, "recover", "--path_raw", two_matrices, "--path_diff", diff, "--path_tuned", out)
    torch.testing.assert_close(logits(load(out)), logits(load(tuned)), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(load(out)), logits(load(two_matrices)), atol=1e-3)


def test_own_output_matrix_is_exported_to_gguf(two_matrices: Path, tied_base: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    export_gguf.main(str(two_matrices), str(tmp_path / "two.gguf"), "f32")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "two.gguf").tensors}
    expected = load_file(two_matrices / "model.safetensors")["lm_head.weight"].float().numpy()
    assert (tensors["output.weight"].reshape(expected.shape) == expected).all()
    export_gguf.main(str(tied_base), str(tmp_path / "tied.gguf"), "f32")
    assert "output.weight" not in {tensor.name for tensor in gguf.GGUFReader(tmp_path / "tied.gguf").tensors}
