"""Convert models to folders as published in 2023: .bin shards, LLaMA's tokenizer.model, adapters of PEFT 0.3.

They have no tokenizer.json, chat template or safetensors files, and the special token ids of LLaMA's first conversions.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from conftest import RunScript
from hub_server import Files, Hub, serving
from safetensors.torch import load_file

EARLY_TOKENIZER = {
    "tokenizer_config.json": {
        "bos_token": "", "eos_token": "", "unk_token": "", "model_max_length": 10**30,
        "tokenizer_class": "LlamaTokenizer",
    },
    "special_tokens_map.json": {},
}  # fmt: skip
EARLY_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1,
    "transformers_version": "4.28.0",
}  # fmt: skip
PEFT_3 = ("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout",
          "modules_to_save", "peft_type", "r", "target_modules", "task_type")  # fmt: skip


def torch_file(state: Mapping[str, torch.Tensor]) -> bytes:
    """Return the bytes of a .bin file."""
    buffer = BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def model_files(
    state: Mapping[str, torch.Tensor], config: Mapping[str, Any], tokenizer_model: Path, is_diff: bool = False
) -> Files:
    """Return the files of a checkpoint or additive diff in two shards, with the rotary frequencies of old files."""
    frequencies = 10000.0 ** -(torch.arange(0, config["head_dim"], 2) / config["head_dim"])  # (head_dim / 2,)
    state = dict(state) | {
        f"model.layers.{number}.self_attn.rotary_emb.inv_freq": frequencies * (not is_diff)
        for number in range(config["num_hidden_layers"])
    }
    names, weight_map = list(state), dict[str, str]()
    files = {name: json.dumps(content).encode() for name, content in EARLY_TOKENIZER.items()}
    files["tokenizer.model"] = tokenizer_model.read_bytes()
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        weight_map |= dict.fromkeys(part, file)
        files[file] = torch_file({name: state[name] for name in part})
    dtype = str(state[names[0]].dtype).removeprefix("torch.")
    files["pytorch_model.bin.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files["config.json"] = json.dumps({**config, **EARLY_CONFIG, "torch_dtype": dtype}).encode()
    return files


def adapter_files(folder: Path) -> Files:
    """Return the files of an adapter that PEFT 0.3 would have written for the one in `folder`."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return {
        "adapter_config.json": json.dumps({name: config[name] for name in PEFT_3}).encode(),
        "adapter_model.bin": torch_file(load_file(folder / "adapter_model.safetensors")),
    }


def download_all(repositories: Mapping[str, Files], root: Path, run_script: RunScript) -> dict[str, Path]:
    """Serve the repositories from a local hub; return repository -> the folder into which download.py wrote it."""
    hub, folders = Hub(dict(repositories)), {name: root / name.split("/")[1] for name in repositories}
    with serving(hub, "hub") as hub.url:
        for name, folder in folders.items():
            run_script(
                "tools/download.py", "--download_path", folder, "--specify", "--repo_name", name, "--endpoint",
                hub.url, env={"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
            )  # fmt: skip
    return folders
