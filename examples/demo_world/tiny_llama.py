"""Train a SentencePiece tokenizer, and write a small randomly initialised LLaMA checkpoint.

The tokenizer has LLaMA's training options: BPE, byte fallback, split digits (Touvron et al. 2023,
https://arxiv.org/abs/2302.13971), and no normalisation.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from json_rows.row_files import iterate_texts

SPLIT_AT = 4000  # characters of a training line, at most 4 bytes each; see max_sentence_length


def training_texts(paths: list[str], text_key: str = "text") -> Iterator[str]:
    """Yield texts under text_key of row files, and lines of text files, in pieces of at most SPLIT_AT characters."""
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; --input takes text or .jsonl files, separated by commas")
        for text in iterate_texts(path, text_key):
            yield from (text[i : i + SPLIT_AT] for i in range(0, len(text), SPLIT_AT))


def train_tokenizer(input: list[str], output_dir: str, vocab_size: int = 1000, text_key: str = "text") -> None:
    """Train output_dir/tokenizer.model on the texts of `input` (files separated by commas)."""
    import sentencepiece

    target = Path(output_dir)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".training-") as scratch:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=training_texts(input, text_key), model_prefix=f"{scratch}/tokenizer",
                vocab_size=vocab_size,
                model_type="bpe", byte_fallback=True, character_coverage=0.9999, split_digits=True,
                normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
                unk_id=0, bos_id=1, eos_id=2, pad_id=-1, max_sentence_length=4 * SPLIT_AT + 4, minloglevel=2,
                num_threads=os.cpu_count() or 1,
            )  # fmt: skip
        except RuntimeError as error:  # most often too little text for the vocabulary
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"SentencePiece could not train {vocab_size} pieces on {','.join(input)}: {reason}"
            ) from None
        Path(scratch, "tokenizer.model").replace(target / "tokenizer.model")
    print(f"{target}/tokenizer.model: {vocab_size} pieces")


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
    """Write a randomly initialised float32 LLaMA with the tokenizer of tokenizer_path to the new folder output_dir."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if not Path(tokenizer_path, "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{tokenizer_path} has no tokenizer.json; build it: python tools/build_tokenizer.py "
            f"--tokenizer_model {tokenizer_path}/tokenizer.model --output_dir {tokenizer_path}"
        )
    if Path(output_dir).exists():
        raise ValueError(f"{output_dir} exists already; name a new folder or remove it")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads, num_key_value_heads=num_attention_heads,
        intermediate_size=intermediate_size, max_position_embeddings=max_position_embeddings,
        initializer_range=initializer_range, rope_parameters={"rope_type": "default", "rope_theta": float(rope_theta)},
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    scratch = Path(f"{output_dir}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    (scratch / "model.safetensors").chmod(0o644)  # safetensors creates files that only their owner can read
    tokenizer.save_pretrained(scratch)
    original = Path(tokenizer_path, "tokenizer.model")
    if original.is_file():
        shutil.copyfile(original, scratch / "tokenizer.model")
    settings = {
        "script": "examples/make_demo.py model", "seed": seed, "config": model.config.to_diff_dict(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }  # fmt: skip
    (scratch / "run.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")
    scratch.replace(output_dir)
    print(f"{output_dir}: {model.num_parameters() / 1e6:.2f}M parameters, {len(tokenizer)} pieces, seed {seed}")
