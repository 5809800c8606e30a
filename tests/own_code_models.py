"""Checkpoint folders whose model or tokenizer has Python code of its own, which leaves a file when it is executed."""

import json
import shutil
from pathlib import Path
from typing import Any

MODEL = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).write_text("executed")


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    \"\"\"LLaMA with all logits halved.\"\"\"

    config_class = OwnConfig

    def forward(self, *arguments, **more):
        output = super().forward(*arguments, **more)
        output.logits = output.logits / 2
        return output
"""
TOKENIZER = """
from pathlib import Path

from transformers import PreTrainedTokenizerFast

Path({mark!r}).write_text("executed")


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_own_model(base: Path, folder: Path) -> Path:
    """Copy a LLaMA checkpoint as a model with its own code; executing it writes the file `executed` beside folder."""
    shutil.copytree(base, folder)
    (folder / "modeling_own.py").write_text(MODEL.format(mark=str(folder.parent / "executed")))
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    change(folder / "config.json", model_type="own_llama", architectures=["OwnForCausalLM"], auto_map=names)
    return folder


def with_own_tokenizer(base: Path, folder: Path) -> Path:
    """Copy a checkpoint with its own tokenizer code; executing it writes the file `executed` beside folder."""
    shutil.copytree(base, folder)
    (folder / "tokenization_own.py").write_text(TOKENIZER.format(mark=str(folder.parent / "executed")))
    names = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=names)
    change(folder / "config.json", model_type="own_llama")
    return folder


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=2))


def compare_nf4(base: str, quantised: str) -> None:
    """Assert that a quantised checkpoint has the logits of its base quantised on loading; needs bitsandbytes."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["lm_head"],
    )  # fmt: skip
    found = []
    for folder, settings in ((base, {"quantization_config": config}), (quantised, {})):
        options: dict[str, Any] = {"trust_remote_code": True, "device_map": {"": "cpu"}, **settings}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        with torch.inference_mode():
            found.append(model.eval()(torch.arange(10, 40)[None]).logits)
    torch.testing.assert_close(found[1], found[0])
