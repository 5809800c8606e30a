"""Adapter folders like those of tuning, with random matrices that change every answer."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

IDS = torch.arange(10, 40)[None]


def logits_of(model: Any) -> torch.Tensor:
    """Return the logits of IDS, (1, tokens, vocabulary)."""
    with torch.inference_mode():
        return model(IDS).logits


def make_adapter(base: Path, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write a random adapter with PEFT, with the base's tokenizer. settings: arguments of LoraConfig."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(whole, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def other_model(base: Path, folder: Path, **changes: Any) -> Path:
    """Write a random checkpoint like `base` with changed settings in its config.json."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


NARROW = {"hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64}
