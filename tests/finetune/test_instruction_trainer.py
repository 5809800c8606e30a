"""instruction_trainer.py: every layout has the same mean loss over tokens; packed examples stay separate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from instruction_data.named_templates import load_template
from instruction_tuning.adapters import check_adapter_file
from packed_attention import segment_attention
from packed_attention.segment_attention import Segment
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention
from tuning_runs import trainer_of


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca")
    return tokenizer


def example_losses(model: Any, examples: Any, indices: Any) -> list[tuple[float, int]]:
    """Return (summed loss, number of supervised tokens) of each example, computed one at a time without padding."""
    found = []
    for index in indices:
        ids, spans = (torch.from_numpy(part.astype("int64")) for part in examples[int(index)])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(ids[None], use_cache=False).logits[0].float(), -1)
        places = torch.cat([torch.arange(max(start, 1), end) for start, end in spans.tolist()])
        found.append((-logprobs[places - 1, ids[places]].sum().item(), len(places)))
    return found


def token_mean(model: Any, examples: Any, indices: Any) -> float:
    losses, counts = zip(*example_losses(model, examples, indices), strict=True)
    return sum(losses) / sum(counts)


@pytest.mark.integration
def test_loss_and_gradient_are_the_same_for_every_layout(
    tmp_path: Path, tiny_checkpoint: Path, tokenizer: Any, rows_file: Path
) -> None:
    """Micro batches have 1, 2, 4 and 8 packed examples; sdpa cannot pack, so its examples are computed one by one."""
    seen = []
    layouts: list[tuple[object, ...]] = [("--micro_batch_size", micro) for micro in (1, 2, 4, 8)]
    for layout in [*layouts, ("--attn_implementation", "sdpa", "--micro_batch_size", 4)]:
        more = ("--batch_size", 8, "--max_steps", 1, "--cutoff_len", 160, *layout)
        trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "out", *more)
        assert trainer.layout.packed == ("sdpa" not in layout)
        trainer.train()
        (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        seen.append((entry["loss"], entry["grad_norm"]))
    for loss, norm in seen[1:]:
        assert loss == pytest.approx(seen[0][0], rel=1e-6)
        assert norm == pytest.approx(seen[0][1], rel=1e-5)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)  # a fresh adapter adds nothing
    assert seen[0][0] == pytest.approx(token_mean(model, trainer.data.examples, trainer.data.order.step(0)), rel=1e-6)


def test_last_step_of_an_epoch_is_normalised_by_its_own_tokens(
    tmp_path: Path, tiny_checkpoint: Path, tokenizer: Any, rows_file: Path
) -> None:
    more = ("--batch_size", 56, "--num_epochs", 1, "--learning_rate", "1e-30", "--micro_batch_size", 8)
    trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "out", *more)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    steps = [trainer.data.order.step(number) for number in range(2)]
    assert [len(step) for step in steps] == [56, 4]
    assert losses == pytest.approx([token_mean(model, trainer.data.examples, step) for step in steps], rel=1e-5)


@pytest.mark.parametrize("attention", ["sdpa_by_segment", "sdpa"])
def test_eval_loss_is_weighted_by_tokens_for_every_batch_size(
    tmp_path: Path, tiny_checkpoint: Path, tokenizer: Any, rows_file: Path, attention: str
) -> None:
    for size in (1, 4, 10):
        sizes: tuple[object, ...] = ("--per_device_eval_batch_size", size, "--val_set_size", 10, "--cutoff_len", 160)
        sizes += ("--attn_implementation", attention)
        trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "out", *sizes)
        model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
        expected = token_mean(model, trainer.data.examples, trainer.data.held_out)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
    "mistral": {"num_key_value_heads": 1, "sliding_window": 20},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 20, "layer_types":
                    ["sliding_attention", "full_attention"]},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 20,
               "attn_logit_softcapping": 0.5},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_loss_equals_the_loss_of_single_examples_in_every_architecture(
    tmp_path: Path, tiny_checkpoint: Path, tokenizer: Any, rows_file: Path, name: str
) -> None:
    """bloom and mamba, which cannot use attention by segments, compute one example at a time."""
    own = {} if name in ("gpt2", "bloom", "mamba") else SIZES
    more = {"vocab_size": len(tokenizer), "initializer_range": 0.3, **own, **ARCHITECTURES[name]}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **more))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options: tuple[object, ...] = ("--batch_size", 8, "--micro_batch_size", 4, "--max_steps", 1, "--cutoff_len", 160)
    options += ("--lora_target_modules", "in_proj") if name == "mamba" else ()
    trainer = trainer_of(tmp_path / "base", tokenizer, rows_file, tmp_path / "out", *options)
    trainer.train()
    assert trainer.layout.packed == (name not in ("bloom", "mamba"))
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
    assert entry["loss"] == pytest.approx(token_mean(base, trainer.data.examples, trainer.data.order.step(0)), rel=2e-6)


def test_pad_token_without_an_embedding_is_not_used_for_padding(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "out", "--max_steps", 1)
    assert (tokenizer.pad_token_id, trainer.layout.pad_id) == (trainer.model.config.vocab_size, 2)
    trainer.layout.packed = False
    trainer.train()


def test_attention_by_segment_refuses_a_keyword_that_it_cannot_apply() -> None:
    query, segments = torch.zeros(1, 2, 6, 8), [[Segment(2), Segment(4)]]
    module = LlamaAttention(LlamaConfig(**SIZES), layer_idx=0)
    for keyword in ({"position_bias": torch.zeros(1, 2, 6, 6)}, {"is_causal": False}):
        with pytest.raises(ValueError, match=f"does not implement {next(iter(keyword))}, which LlamaAttention passes"):
            segment_attention.attend_by_segment(module, query, query, query, None, segments=segments, **keyword)
    for keys, mask in ((torch.zeros(1, 2, 9, 8), None), (query, torch.ones(1, 1, 6, 6, dtype=torch.bool))):
        with pytest.raises(ValueError, match="does not implement softcap"):  # with a cache or a mask
            segment_attention.attend_by_segment(module, query, keys, keys, mask, softcap=5.0)


def test_model_that_mixes_packed_examples_computes_them_one_by_one(
    tmp_path: Path, tiny_checkpoint: Path, tokenizer: Any, rows_file: Path
) -> None:
    """sdpa without segments attends over the whole packed sequence."""
    options = ("--batch_size", 8, "--max_steps", 1)
    trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "out", *options)
    for layer in trainer.model.get_base_model().model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *given, f=forward, segments=None, **more: f(*given, **more)
    assert trainer.layout.packed
    trainer.train()
    assert not trainer.layout.packed
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    assert entry["loss"] == pytest.approx(
        token_mean(model, trainer.data.examples, trainer.data.order.step(0)), rel=1e-6
    )


def test_saved_adapter_is_complete_and_reloads_to_the_same_logits(
    tmp_path: Path, tiny_checkpoint: Path, tokenizer: Any, rows_file: Path
) -> None:
    trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "out", "--batch_size", 8, "--max_steps", 2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    file = tmp_path / "adapter/adapter_model.safetensors"
    check_adapter_file(file)
    tensors = load_file(file)
    assert len(tensors) == 2 * 7 * 2  # layers, linear modules in each, A and B
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attn_implementation=segment_attention.NAME)
    ids = torch.from_numpy(trainer.data.examples[0][0].astype("int64"))[None]
    with torch.inference_mode():
        plain = base(ids).logits
        again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
        assert torch.equal(again, trainer.model.eval()(ids).logits)
        assert not torch.allclose(again, plain, atol=1e-3)

    first = min(tensors)
    save_file(tensors | {first: torch.zeros_like(tensors[first])}, file)
    with pytest.raises(ValueError, match=f"{first} .* is zero after training"):
        check_adapter_file(file)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("attends", [True, False])
def test_prefixes_are_shared_if_the_attention_of_the_model_reads_them(
    tmp_path: Path, tiny_checkpoint: Path, tokenizer: Any, rows_file: Path, precision: str, attends: bool
) -> None:
    """30 layers have large rounding errors in bfloat16; these must not look like attention that ignores prefixes."""
    config = AutoConfig.from_pretrained(tiny_checkpoint, num_hidden_layers=30)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = ("--batch_size", 8, "--max_steps", 1, "--bf16", precision == "bf16")
    trainer = trainer_of(tmp_path / "base", tokenizer, rows_file, tmp_path / "out", *options)
    for layer in trainer.base_model.model.layers if not attends else ():
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *given, f=forward, segments, **more: f(
            *given, segments=[[Segment(segment.length) for segment in sequence] for sequence in segments], **more
        )
    trainer.train()
    assert (trainer.layout.packed, trainer.layout.share_prefixes) == (True, attends)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("tokens", [20, segment_attention.EAGER_TOKENS])
def test_bfloat16_attention_on_a_cpu_equals_float32_within_rounding(tokens: int, window: int | None) -> None:
    """Short segments take transformers' eager attention, longer ones SDPA."""
    module = LlamaAttention(LlamaConfig(**SIZES, num_key_value_heads=1), layer_idx=0)
    segments = [[Segment(11), Segment(tokens, parent=0), Segment(tokens)]]
    total = 11 + 2 * tokens
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, total, 16).bfloat16() for heads in (2, 1, 1))
    found: list[list[Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = given = [tensor.to(dtype).detach().requires_grad_() for tensor in (query, key, value)]
        output, _ = segment_attention.attend_by_segment(
            module, q, k, v, None, scaling=0.25, segments=segments, sliding_window=window
        )
        output.float().square().sum().backward()
        assert output.shape == (1, total, 2, 16)
        found.append([output, *(tensor.grad for tensor in given)])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (rounded.float() - exact).norm() < 0.01 * exact.norm()
