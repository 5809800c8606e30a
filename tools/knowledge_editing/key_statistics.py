"""Second moments of keys, E[k kᵀ], over a user's own text: how a matrix is used by everything that must stay the same.

ROME, MEMIT and AlphaEdit need them (Meng et al. 2022, https://arxiv.org/abs/2202.05262). They are estimated by
streaming text through the model, and cached by the fingerprint of the model's weights and the hash of the text.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from json_rows.row_files import iterate_texts
from partial_folders.atomic_outputs import new_file
from tqdm import tqdm

from knowledge_editing.editable_model import EditableModel, pad_right

WINDOW = 256  # tokens of a sequence
BATCH = 8  # sequences


def text_windows(encode: Any, texts: Iterable[str], tokens: int) -> Iterator[list[int]]:
    """Yield sequences of at most WINDOW token ids, of at most `tokens` ids in total.

    encode: a function from a text to its token ids, BOS included.
    """
    for text in texts:
        ids = encode(text)
        for start in range(0, len(ids), WINDOW):
            window = ids[start : start + min(WINDOW, tokens)]
            tokens -= len(window)
            if window:
                yield window
            if not tokens:
                return


def second_moments(
    model: EditableModel, layers: Sequence[int], windows: Iterable[Sequence[int]], total: int
) -> tuple[dict[int, torch.Tensor], int]:
    """Return ({layer: E[k kᵀ], (MLP size, MLP size) float32}, number of tokens); one pass serves all layers.

    total: the number of tokens that the progress bar expects.
    """
    sums: dict[int, torch.Tensor] = {}
    modules = {layer: model.model.get_submodule(model.module.replace("{}", str(layer))) for layer in layers}
    lengths: list[int] = []

    def collect(layer: int, inputs: torch.Tensor) -> None:
        keys = torch.cat([row[:length] for row, length in zip(inputs, lengths, strict=True)]).float()
        sums.setdefault(layer, torch.zeros(keys.shape[1], keys.shape[1]))
        sums[layer] += (keys.T @ keys).cpu()

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, layer=layer: collect(layer, inputs[0]))
        for layer, module in modules.items()
    ]
    count, pending = 0, list[Sequence[int]]()
    try:
        with tqdm(total=total, desc="key statistics", unit="token", disable=None, leave=False) as bar:
            for window in [*windows, []]:
                pending += [window] if window else []
                if pending and (len(pending) == BATCH or not window):
                    lengths[:] = [len(each) for each in pending]
                    model.hidden_after(max(layers), pad_right(pending, model.model.device))
                    count += sum(lengths)
                    bar.update(sum(lengths))
                    pending = []
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: value / max(count, 1) for layer, value in sums.items()}, count


def cached_moments(
    model: EditableModel,
    layers: Sequence[int],
    encode: Any,
    text_path: Path,
    tokens: int,
    fingerprint: str,
    cache: Path,
) -> dict[int, torch.Tensor]:
    """Return `second_moments` of a JSONL of {"text"}, from the cache folder if they were computed before.

    fingerprint: of the model's weights. Raises ValueError if the text has fewer than `tokens` tokens.
    """
    text_hash = hashlib.blake2b(text_path.read_bytes(), digest_size=16).hexdigest()
    files = {layer: cache / f"{fingerprint[:16]}-{text_hash[:16]}-{tokens}-layer{layer}.npy" for layer in layers}
    missing = [layer for layer, file in files.items() if not file.is_file()]
    moments = {layer: torch.from_numpy(np.load(file)) for layer, file in files.items() if layer not in missing}
    if not missing:
        return moments
    windows = text_windows(encode, iterate_texts(text_path), tokens)
    computed, count = second_moments(model, missing, windows, tokens)
    if count < tokens:
        raise ValueError(
            f"{text_path} has {count} tokens, --stats_tokens asks for {tokens}; give more text or "
            f"--stats_tokens {count}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    for layer, moment in computed.items():
        with new_file(str(files[layer]), replace=True) as partial, partial.open("wb") as file:
            np.save(file, moment.numpy())
    return moments | computed
