"""Write an original LLaMA checkpoint as a Hugging Face folder: tokenizer, weights and configuration."""

import shutil
from pathlib import Path

from checkpoint_io.checkpoint_folders import write_json
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import TORCH_NAME
from tokenizer_files.llama_tokenizer import ConvertedTokenizer, check_llama_tokenizer, read_llama_tokenizer

from llama_conversion.llama_layout import stream_weight
from llama_conversion.llama_params import context_length, model_config
from llama_conversion.original_checkpoint import OriginalCheckpoint, verify_checklists, weights_to_write


def write_converted(
    original: OriginalCheckpoint, folder: Path, shard_limit: int, chat: bool, check_path: str = ""
) -> str:
    """Write the files of an original checkpoint, except run.json, to a new folder; return a summary.

    shard_limit: the largest size of a shard in bytes. chat: the model is a chat model. check_path: additional text to
    compare the tokenizer on. Raises ValueError or FileNotFoundError if a file differs from its checklist, or if
    tokenizer and weights do not fit each other.
    """
    compared = verify_checklists(original)
    weights = {weight.spec.name: weight for weight in weights_to_write(original)}
    rows = original.weights[0].spec.shape[0]
    tokenizer, checked = convert_tokenizer(original, folder, rows, chat, check_path)
    specs = [weight.spec for weight in weights.values()]
    hashes = write_shards(folder, specs, lambda spec: stream_weight(weights[spec.name]), shard_limit)
    verify_written(folder, hashes)
    params, version = original.params, original.version
    dtype = TORCH_NAME[weights["model.layers.0.self_attn.q_proj.weight"].spec.dtype]
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    shape = {"vocab_size": rows, "tie_word_embeddings": "lm_head.weight" not in weights}
    write_json(folder / "config.json", model_config(params, version, dtype, **ids, **shape))
    write_json(folder / "generation_config.json", ids)
    count = len(original.files)
    listed = f"{compared} file{'s' * (compared != 1)} as in the checklist, " if compared else ""
    return (
        f"LLaMA-{version} {params.size}, {len(specs)} tensors from {count} file{'s' * (count != 1)} in {dtype}, "
        f"context {context_length(params, version)}; {listed}tokenizer {checked}"
    )


def convert_tokenizer(
    original: OriginalCheckpoint, folder: Path, rows: int, chat: bool, check_path: str
) -> tuple[ConvertedTokenizer, str]:
    """Write the tokenizer to a folder; return it, and the result of its check as a phrase.

    Raises ValueError unless the tokenizer has `rows` tokens and gives the original's ids.
    """
    tokenizer = read_llama_tokenizer(original.tokenizer, original.version, chat)
    if (tokens := tokenizer.tokenizer.get_vocab_size(with_added_tokens=True)) != rows:
        raise ValueError(
            f"{original.tokenizer} has {tokens:,} tokens, but the embedding in {original.folder} has {rows:,} rows; "
            "use the model's own tokenizer.model"
        )
    checked = check_llama_tokenizer(tokenizer, check_path)
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer.config)
    shutil.copyfile(original.tokenizer, folder / "tokenizer.model")
    return tokenizer, checked
