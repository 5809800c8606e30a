"""Small models with a tokenizer, llama.cpp's server, and metadata of GGUF files, for the tests of export and import."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

TEMPLATE = "{{ bos_token }}{{ messages[0].content }}\n"
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
THETA = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "grouped": ("LlamaConfig", {}),
    "biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "wide heads": ("LlamaConfig", {"head_dim": 32}),
    "linear": ("LlamaConfig", {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 4.0}}),
    "yarn": ("LlamaConfig", {"rope_parameters": {**THETA, "rope_type": "yarn", "factor": 4.0}}),
    "llama 3": (
        "LlamaConfig",
        {"rope_parameters": {
            **THETA, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    ),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen 2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen 3": ("Qwen3Config", {"head_dim": 32}),
}  # fmt: skip
Ask = Callable[[str, dict[str, Any]], Any]  # ask("/path", body) returns the response
Serve = Callable[[Path], Ask]
Make = Callable[..., Path]


def write_model(folder: Path, tokenizer: Path, kind: str = "LlamaConfig", **settings: object) -> Path:
    """Write a checkpoint folder with random weights; Qwen 2 and 3 get a byte-level tokenizer, as transformers expects.

    kind: the configuration class in transformers.
    """
    import torch
    import transformers

    torch.manual_seed(3)
    config = getattr(transformers, kind)(**({"vocab_size": 800} | SMALL | settings))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms start as ones and biases as zeros, which would hide errors
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if kind.startswith("Qwen"):
        write_byte_level_tokenizer(folder, "qwen2")
    else:
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


@cache
def byte_level_tokenizer(name: str) -> Any:
    """Return a `tokenizers` tokenizer of at most 800 tokens that splits text like llama.cpp's pre-tokenizer `name`."""
    from conftest import small_texts
    from gguf_files.gguf_vocabulary import PRE_TOKENIZERS
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    kind = PRE_TOKENIZERS[name]
    empty = json.loads(Tokenizer(models.BPE(ignore_merges=kind.ignore_merges)).to_str())
    steps = [{"trim_offsets": True} | step for step in kind.steps]
    tokenizer = Tokenizer.from_str(json.dumps(empty | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(small_texts(), trainer)
    tokenizer.add_tokens([AddedToken("<tool 山>", normalized=False)])
    tokenizer.add_special_tokens(["<|begin|>", "<|eot_id|>", "<|endoftext|>"])  # Qwen2 requires the last
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    else:
        begin = [("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=begin)
    return tokenizer


def write_byte_level_tokenizer(folder: Path, name: str) -> None:
    """Replace a folder's tokenizer by the result of `byte_level_tokenizer`."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    byte_level_tokenizer(name).save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<|begin|>", "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>"}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | roles
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def started(llama: Any, file: Path) -> tuple[Any, Ask]:
    """Start xllamacpp's server in this process; return it and a function that sends requests.

    The server stops when the object is deleted.
    """
    import requests

    options = llama.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel = str(file), 512, 1
    options.warmup, options.verbosity = False, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1  # several threads would wait for each other
    options.cache_type_k = options.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, session = llama.Server(options), requests.Session()
    session.trust_env = False  # no proxy
    return server, lambda path, body: session.post(server.listening_address + path, json=body, timeout=60).json()


def ids_of(ask: Ask, text: str, special: bool = False, add: bool = False) -> list[int]:
    """Return llama.cpp's ids of a text. special: parse control tokens in it; add: add BOS and EOS."""
    ids: list[int] = ask("/tokenize", {"content": text, "parse_special": special, "add_special": add})["tokens"]
    return ids


def keys(file: Path) -> dict[str, Any]:
    """Return a GGUF file's metadata."""
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(file).fields.items() if "GGUF." not in name}


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
