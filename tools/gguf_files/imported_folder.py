"""Write a GGUF file as a sealed checkpoint folder: tokenizer, chat template, weights, configuration."""

from collections import Counter
from io import FileIO
from pathlib import Path

from chat_prompts.template_files import TEMPLATE
from checkpoint_io.checkpoint_folders import write_json
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import TORCH_NAME
from checkpoint_seals.seal_writer import write_seal

from gguf_files.gguf_header import GgufFile
from gguf_files.imported_model import ImportedModel, tensor_chunks
from gguf_files.imported_tokenizer import ImportedTokenizer, damage_error, write_imported_tokenizer

CHAT_TEMPLATE = "tokenizer.chat_template"  # a further template has this key followed by ".NAME"
DTYPES = {name: dtype for dtype, name in TORCH_NAME.items()}  # PyTorch's name -> safetensors' name


def chosen_dtype(file: GgufFile, requested: str) -> str:
    """Return the type of the new tensors in safetensors' spelling.

    requested: --dtype, or "" for the type of the file's matrices (BF16 if they are quantised or have several types).
    Raises ValueError if `requested` is unknown.
    """
    if requested:
        if requested not in DTYPES:
            raise ValueError(f"--dtype {requested} is unknown; use one of {', '.join(DTYPES)}")
        return DTYPES[requested]
    kinds = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) == 2}
    kind = kinds.pop() if len(kinds) == 1 else ""
    return kind if kind in TORCH_NAME else "BF16"


def write_imported(
    file: GgufFile, model: ImportedModel, tokenizer: ImportedTokenizer, folder: Path, shard_limit: int
) -> str:
    """Write all files except run.json to a new folder, and seal it; return a summary.

    shard_limit: largest size of a shard in bytes. Raises ValueError if the tokenizer or a tensor is damaged.
    """
    template = file.metadata.get(CHAT_TEMPLATE, "")
    if not isinstance(template, str):
        raise damage_error(file, f"{CHAT_TEMPLATE} is {str(template)[:80]}, not text")
    phrase = write_imported_tokenizer(tokenizer, folder, model.config["max_position_embeddings"])
    if template:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
    ids = tokenizer.token_ids
    write_json(folder / "config.json", dict(sorted((model.config | ids).items())))
    write_json(folder / "generation_config.json", ids)
    tensors = {tensor.name: tensor for tensor in model.tensors}
    with FileIO(file.path) as source:
        hashes = write_shards(
            folder, model.tensors, lambda spec: tensor_chunks(file, tensors[spec.name], source), shard_limit
        )
    verify_written(folder, hashes)
    write_seal(folder, [file.path])
    file.check_unchanged()
    prefix = f"{CHAT_TEMPLATE}."
    named = sorted(key.removeprefix(prefix) for key in file.metadata if key.startswith(prefix))
    templates = "" if template else "; no chat template"
    templates += f"; further chat templates are not imported: {', '.join(named)}" if named else ""
    kinds = Counter(tensor.source.kind for tensor in model.tensors)
    counts = ", ".join(f"{count} {kind.lower()}" for kind, count in kinds.most_common())
    parameters = sum(tensor.elements for tensor in model.tensors)
    return (
        f"{model.config['architectures'][0]}, {parameters:,} parameters in {model.config['torch_dtype']}, "
        f"{len(tensors)} tensors ({counts}), context {model.config['max_position_embeddings']}; "
        f"{len(tokenizer.tokens):,} tokens, {phrase}{templates}"
    )
