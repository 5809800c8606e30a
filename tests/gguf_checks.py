"""Small models with a tokenizer, llama.cpp's server, and what is in a GGUF file: for the tests of exporting GGUF."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPLATE = "{{ bos_token }}{{ messages[0].content }}\n"
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
Ask = Callable[[str, dict[str, Any]], Any]  # ask("/path", body): the answer
Serve = Callable[[Path], Ask]
Make = Callable[..., Path]


def write_model(folder: Path, tokenizer: Path, kind: str = "LlamaConfig", **settings: object) -> Path:
    """A checkpoint folder with random weights, of the class that belongs to this class of configurations."""
    import torch
    import transformers

    torch.manual_seed(3)
    config = getattr(transformers, kind)(**({"vocab_size": 800} | SMALL | settings))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms are made as ones and biases as zeros, which would hide mistakes
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    return folder


def started(llama: Any, file: Path) -> tuple[Any, Ask]:
    """A server of the module xllamacpp in this process, which runs as long as it is held, and how to ask it."""
    import requests

    options = llama.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel = str(file), 512, 1
    options.warmup, options.verbosity = False, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 2
    options.cache_type_k = options.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, session = llama.Server(options), requests.Session()
    session.trust_env = False  # no proxy
    return server, lambda path, body: session.post(server.listening_address + path, json=body, timeout=60).json()


def ids_of(ask: Ask, text: str, special: bool = False, add: bool = False) -> list[int]:
    """llama.cpp's ids; special: control tokens spelt in the text are read as such; add: BOS and EOS are put around."""
    ids: list[int] = ask("/tokenize", {"content": text, "parse_special": special, "add_special": add})["tokens"]
    return ids


def keys(file: Path) -> dict[str, Any]:
    """A GGUF file's metadata."""
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(file).fields.items() if "GGUF." not in name}


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None takes one out."""
    content = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
