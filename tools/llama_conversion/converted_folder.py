"""Write an original LLaMA checkpoint as a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path

from checkpoint_io import resume_journal
from checkpoint_io.checkpoint_folders import copy_files, new_folder, write_json, write_run_record
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import TORCH_NAME
from checkpoint_seals.seal_check import verify_seal
from tokenizer_files.llama_tokenizer import LlamaTokenizer, check_llama_tokenizer, read_llama_tokenizer

from llama_conversion.llama_layout import stream_weight
from llama_conversion.llama_params import context_of, model_config
from llama_conversion.original_checkpoint import OriginalCheckpoint, notice, verify_checklists, weights_to_write

SCRIPT = "tools/convert_llama.py"


def convert(
    original: OriginalCheckpoint,
    target: str,
    instruct: bool,
    limit: int,
    check_path: str,
    options: Mapping[str, object],
) -> str:
    """Write the new folder target in shards of at most `limit` bytes; return a summary line.

    instruct: the model is a chat model. check_path: see `comparison_texts`. Raises ValueError or FileNotFoundError.
    """
    source, version, params = original.folder, original.version, original.params
    verify_seal(source)
    run = resume_journal.run_identity(SCRIPT, options, {source, original.tokenizer.parent})
    with new_folder(target, sum(weight.spec.nbytes for weight in original.weights), run) as folder:
        compared = verify_checklists(original)
        weights = {weight.spec.name: weight for weight in weights_to_write(original)}
        tokenizer = read_llama_tokenizer(original.tokenizer, version, instruct)
        checked = write_tokenizer(folder, original, tokenizer, check_path)
        specs = [weight.spec for weight in weights.values()]
        hashes = write_shards(folder, specs, lambda spec: stream_weight(weights[spec.name]), limit)
        verify_written(folder, hashes)
        dtype = TORCH_NAME[weights["model.layers.0.self_attn.q_proj.weight"].spec.dtype]
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
        shape = {"vocab_size": tokenizer.size, "tie_word_embeddings": "lm_head.weight" not in weights}
        write_json(folder / "config.json", model_config(params, version, dtype, **ids, **shape))
        write_json(folder / "generation_config.json", ids)
        write_run_record(folder, SCRIPT, options, {"original": source})
    if instruct:
        notice(f"{target} has no prompt format; add one: python tools/set_template.py --model_path {target} …")
    listed = f"{compared} files as in the checklist, " if compared else ""
    return (
        f"{target}: LLaMA-{version} {params.size}, {len(specs)} tensors from {len(original.files)} file(s) in {dtype}, "
        f"context {context_of(params, version)}; {listed}tokenizer {checked}"
    )


def write_tokenizer(folder: Path, original: OriginalCheckpoint, tokenizer: LlamaTokenizer, check_path: str) -> str:
    """Compare the tokenizer with the original one, write its files, and return the result as a phrase.

    Raises ValueError if its size differs from the embedding's rows, or its ids from the original's.
    """
    rows = original.weights[0].spec.shape[0]
    if tokenizer.size != rows:
        raise ValueError(
            f"{original.tokenizer} has {tokenizer.size:,} tokens, the embedding in {original.folder} {rows:,} rows; "
            "copy the model's own tokenizer.model there"
        )
    checked = check_llama_tokenizer(tokenizer, check_path)
    tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer.config)
    copy_files(original.tokenizer.parent, folder, ("tokenizer.model",))
    return checked
