"""Train a SentencePiece tokenizer, and write a small randomly initialised LLaMA checkpoint.

The tokenizer has LLaMA's training options: BPE, byte fallback, split digits (Touvron et al. 2023,
https://arxiv.org/abs/2302.13971), and no normalisation.
"""

import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

from json_rows.row_files import iterate_texts
from partial_folders.atomic_outputs import new_file, new_folder
from partial_folders.output_paths import folder_path

MAX_CHARACTERS = 4000  # of a training sentence of SentencePiece; longer texts are split


def train_tokenizer(input: list[str], output_dir: str, vocab_size: int = 1000) -> None:
    """Train output_dir/tokenizer.model on the texts of `input` (text and row files, separated by commas)."""
    import sentencepiece

    target, model, errors = Path(output_dir), BytesIO(), list[OSError | ValueError]()

    def sentences() -> Iterator[str]:
        try:
            for text in (text for path in input for text in iterate_texts(path)):
                yield from (text[at : at + MAX_CHARACTERS] for at in range(0, len(text), MAX_CHARACTERS))
        except (OSError, ValueError) as error:  # SentencePiece would replace its message
            errors.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(), model_writer=model, vocab_size=vocab_size,
            model_type="bpe", byte_fallback=True, character_coverage=0.9999, split_digits=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, max_sentence_length=4 * MAX_CHARACTERS + 4,  # bytes
            minloglevel=2,
            num_threads=os.cpu_count() or 1,
        )  # fmt: skip
    except RuntimeError as error:  # most often too little text for the vocabulary
        if errors:
            raise errors[0] from None
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"SentencePiece could not train {vocab_size} pieces on {','.join(input)}: {reason}") from None
    with new_file(target / "tokenizer.model", replace=True) as file:
        file.write_bytes(model.getvalue())
    print(f"{target}/tokenizer.model: {vocab_size} pieces")


def check_settings(sizes: dict[str, Any], initializer_range: float) -> None:
    """Raise ValueError if a setting of `make_model` is out of range. sizes: name -> value, which must be at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"--{name} {size} is too small; it must be at least 1")
    if sizes["hidden_size"] % (2 * sizes["num_attention_heads"]):  # RoPE rotates pairs of elements of a head
        size, multiple = sizes["hidden_size"], 2 * sizes["num_attention_heads"]
        raise ValueError(
            f"--hidden_size {size} is not a multiple of twice --num_attention_heads; give a multiple of {multiple}"
        )
    if not 0 <= initializer_range <= 1:
        raise ValueError(f"--initializer_range {initializer_range} is not between 0 and 1; LLaMA has 0.02")


def make_model(
    tokenizer_path: str,
    output_dir: str,
    hidden_size: int = 192,
    num_hidden_layers: int = 4,
    num_attention_heads: int = 4,
    intermediate_size: int = 512,
    max_position_embeddings: int = 1024,
    initializer_range: float = 0.02,
    rope_theta: float = 10000.0,
    seed: int = 0,
) -> None:
    """Write a randomly initialised float32 LLaMA with a tokenizer to the new folder output_dir.

    tokenizer_path: the tokenizer's folder, or its tokenizer.model.
    """
    import torch
    from model_folders.own_code import from_folder
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if Path(tokenizer_path).name == "tokenizer.model":
        tokenizer_path = str(Path(tokenizer_path).parent)
    if not Path(tokenizer_path, "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{tokenizer_path} has no tokenizer.json; build it: python tools/build_tokenizer.py "
            f"--tokenizer_model {tokenizer_path}/tokenizer.model --output_dir {tokenizer_path}"
        )
    folder_path(output_dir)
    sizes: dict[str, Any] = {
        "hidden_size": hidden_size, "num_hidden_layers": num_hidden_layers, "num_attention_heads": num_attention_heads,
        "intermediate_size": intermediate_size, "max_position_embeddings": max_position_embeddings,
    }  # fmt: skip
    check_settings({**sizes, "rope_theta": rope_theta}, initializer_range)
    tokenizer: Any = from_folder(AutoTokenizer, tokenizer_path, False)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=num_attention_heads, **sizes,
        initializer_range=initializer_range, rope_parameters={"rope_type": "default", "rope_theta": float(rope_theta)},
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    settings = {
        "script": "examples/make_demo.py model", "seed": seed, "config": model.config.to_diff_dict(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }  # fmt: skip
    with new_folder(output_dir, 0) as folder:
        try:
            tokenizer.save_pretrained(folder)
        except UnicodeEncodeError as error:
            raise ValueError(f"{tokenizer_path} cannot be saved ({error}); correct its files") from None
        model.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)  # safetensors creates files that only their owner can read
        if (sentencepiece_model := Path(tokenizer_path, "tokenizer.model")).is_file():
            shutil.copy(sentencepiece_model, folder)
        (folder / "run.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")
    print(f"{output_dir}: {model.num_parameters() / 1e6:.2f}M parameters, {len(tokenizer)} pieces, seed {seed}")
