"""Random LoRA adapters of several kinds, and the weights that PEFT merges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MakeAdapter = Callable[..., tuple[Path, dict[str, torch.Tensor]]]

CONFIGURATIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 5}},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "embedding": {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
}


def write_adapter(base: Path, folder: Path, **options: object) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write a random adapter of `base`; return its folder, and the weights that PEFT's merge_and_unload gives.

    options: arguments of LoraConfig.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]} | options
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if parameter.requires_grad:
                noise = 0.05 * torch.randn_like(parameter)
                parameter.add_(noise.abs() if "magnitude" in name else noise)
    peft_model.save_pretrained(str(folder))
    merged = peft_model.merge_and_unload().state_dict()
    return folder, {name: value.clone() for name, value in merged.items()}
