"""Models whose attention SDPA does not implement are loaded with another backend."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import train
from adapter_loading.checkpoint_loading import load_checkpoint
from lora_adapters import logits_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def test_soft_capping_of_attention_scores_is_kept(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """transformers' sdpa attention omits Gemma 2's soft-capping; its eager attention is the reference."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma2", vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, intermediate_size=64, attn_logit_softcapping=0.5, initializer_range=0.3,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    eager, sdpa = (
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name))
        for name in ("eager", "sdpa")
    )
    assert not torch.allclose(eager, sdpa, atol=1e-3)
    assert torch.equal(logits_of(load_checkpoint(str(tmp_path))[0]), eager)
    arguments: Any = SimpleNamespace(
        model_name_or_path=tmp_path, trust_remote_code=False, device=torch.device("cpu"), bf16=False, fp16=False,
        torch_compile=False, attn_implementation=None, no_packing=True,
    )  # fmt: skip
    assert torch.equal(logits_of(train.load_base(arguments)[0].eval()), eager)
    arguments.no_packing = False
    torch.testing.assert_close(logits_of(train.load_base(arguments)[0].eval()), eager)
    arguments.attn_implementation = "sdpa"
    for load in (
        lambda: load_checkpoint(str(tmp_path), attn_implementation="sdpa"),
        lambda: train.load_base(arguments),
    ):
        with pytest.raises(ValueError, match="sdpa attention omits this model's soft-capping"):
            load()
