"""Tied embedding and output matrices: one matrix in memory, and in most checkpoints one tensor on disk.

Some checkpoints with tie_word_embeddings also store an output matrix. transformers 5 and vLLM use this output matrix if
it differs from the embedding. The tools then keep both and set tie_word_embeddings to false in the new folder.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from checkpoint_io.checkpoint_folders import read_json, write_json
from checkpoint_io.tensors import Tensor

EMBEDDING, OUTPUT = "embed_tokens.weight", "lm_head.weight"


def embedding_name(weights: Mapping[str, object]) -> str:
    """Return the name of the embedding matrix; "" if no name ends in EMBEDDING."""
    return next((name for name in weights if name.endswith(EMBEDDING)), "")


def has_own_output(weights: Mapping[str, Tensor]) -> bool:
    """Return whether there is an output matrix that differs from the embedding in at least one bit."""
    output, embedding = weights.get(OUTPUT), weights.get(embedding_name(weights))
    if output is None or embedding is None:
        return output is not None
    return (output.dtype, output.shape) != (embedding.dtype, embedding.shape) or any(
        not np.array_equal(one, other) for one, other in zip(output.chunks(), embedding.chunks(), strict=True)
    )


def set_untied(folder: Path) -> None:
    """Set tie_word_embeddings to false in config.json."""
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"tie_word_embeddings": False})
