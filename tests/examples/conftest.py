"""Fixtures for the tests of the demos: an instruction-tuned checkpoint with its own wording, and an adapter."""

import json
import shutil
from pathlib import Path

import pytest

WORDING = {"tasks": {"ner": {"en": {"instruction": "List: {schema}"}, "zh": {"instruction": "抽取实体。"}}}}


@pytest.fixture(scope="session")
def instructed_checkpoint(tiny_checkpoint: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with the alpaca template and an extraction.json; tests do not write into it."""
    folder = tmp_path_factory.mktemp("instructed") / "merged"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copyfile(repository / "finetune/templates/alpaca.jinja", folder / "chat_template.jinja")
    (folder / "extraction.json").write_text(json.dumps(WORDING, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def adapter(instructed_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of random, non-zero weights for the tiny checkpoint, with tokenizer and template."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("adapters") / "lora"
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(instructed_checkpoint)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(instructed_checkpoint).save_pretrained(folder)
    return folder
