"""A LoRA adapter merged into its base: W + scaling * B @ A, in float32, rounded once, streamed tensor by tensor.

scaling is lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732). With DoRA
(https://arxiv.org/abs/2402.09353) each row of that sum is scaled to the trained magnitude. What the adapter's
configuration asks beyond that is refused by name.

Not a script: tools/weight_diff.py and tools/export_hf_checkpoint.py import it.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from folders import (
    CONFIG_FILES,
    PROMPT_FILES,
    TOKENIZER_FILES,
    carry,
    new_folder,
    read_json,
    set_dtype,
    write_json,
    write_run,
)  # fmt: skip
from seal_check import verify_seal
from tensors import (
    ADAPTER_FILES,
    CHUNK,
    FLOATS,
    TORCH_NAME,
    Spec,
    Tensor,
    from_float32,
    read_weights,
    to_float32,
    write_shards,
)  # fmt: skip

# Keys of adapter_config.json that do not change what is merged, or that are handled below; any other must be unset.
HANDLED = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core",
    "loftq_config", "eva_config", "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
# Other ways to initialise (PiSSA, OLoRA, CorDA, LoftQ …) subtract something from the base first.
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass
class Update:
    """What an adapter does to one tensor of the base; `left` (rows, r) and `right` (r, columns) are float32."""

    left: np.ndarray | None = None
    right: np.ndarray | None = None
    scaling: float = 1.0
    magnitude: np.ndarray | None = None  # (rows,) float32, DoRA
    whole: Tensor | None = None  # replaces the base's tensor (modules_to_save)


@dataclass
class Adapter:
    config: dict[str, Any]
    updates: dict[str, Update]  # by the name of the base's tensor


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """ValueError with the name of the first setting that merging here does not handle."""
    for name, value in config.items():
        if name not in HANDLED and value not in (None, False, "none", [], {}):
            raise ValueError(f"{path}: {name}={value!r} is not handled here; merge with peft's merge_and_unload")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path} is an adapter of type {config.get('peft_type')!r}; only LORA is merged here")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise ValueError(
            f"{path}: init_lora_weights={start!r} changes the base before training; convert the adapter to plain LoRA "
            "with peft (path_initial_model_for_weight_conversion) first"
        )


def pattern_value(patterns: Mapping[str, Any] | None, module: str, default: float) -> float:
    """A module's own rank or alpha, where a pattern of the configuration names it (peft's rule)."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def values(tensor: Tensor) -> np.ndarray:
    """A whole adapter tensor as float32 in its shape."""
    return to_float32(tensor.bits, tensor.dtype).reshape(tensor.shape)


def collect(tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """An adapter's tensors by the base's tensor that they change; ValueError names the first of an unknown kind."""
    updates: dict[str, Update] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"base_model\.model\.(.+?)\.(lora_\w+|base_layer|weight|bias)(?:\.weight)?", name)
        module, part = found.groups() if found and tensor.dtype in FLOATS else ("", "")
        update = updates.setdefault(module + (".bias" if part == "bias" else ".weight"), Update())
        if part in ("weight", "bias", "base_layer"):
            update.whole = tensor
        elif part == "lora_B":
            update.left = values(tensor)
        elif part == "lora_A":
            update.right = values(tensor)
        elif part == "lora_embedding_A":
            update.left = values(tensor).T
        elif part == "lora_embedding_B":
            update.right = values(tensor).T
        elif part == "lora_magnitude_vector" and f"base_model.model.{module}.lora_A.weight" in tensors:
            update.magnitude = values(tensor).reshape(-1)
        else:
            raise ValueError(f"{tensor.file}: tensor {name} is not handled here; merge with peft's merge_and_unload")
    return updates


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter's folder; ValueError names the setting or tensor that is damaged or not handled."""
    path = folder / "adapter_config.json"
    config = read_json(path)
    check_config(config, path)
    updates = collect(read_weights(folder, ADAPTER_FILES))
    if not updates:
        raise ValueError(f"{folder} has an adapter without tensors; get it again")
    for name, update in updates.items():
        left, right, module = update.left, update.right, name.removesuffix(".weight")
        if left is None and right is None:
            continue
        if left is None or right is None or left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise ValueError(f"{folder}: lora_A and lora_B of {name} are not a pair; get the adapter again")
        alpha = pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
        rank = pattern_value(config.get("rank_pattern"), module, config["r"])
        if rank != left.shape[1]:
            raise ValueError(f"{path} says rank {rank} for {name}, whose tensors have {left.shape[1]}; get both again")
        update.scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(config, updates)


def merged_spec(tensor: Tensor, update: Update | None, adapter: Adapter, tied: bool, dtype: str | None) -> Spec:
    """What a base tensor is after the adapter; ValueError names it where the two do not fit."""
    name, shape = tensor.name, tensor.shape
    if update is not None:
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: tensor {name} is {tensor.dtype}; merge into the unquantised base")
        if update.whole is not None:
            if tied and "embed" in name and not adapter.config.get("ensure_weight_tying"):
                raise ValueError(
                    f"the base's output is tied to {name}, which the adapter holds a copy of; untie the base"
                )
            if len(shape) == 2:  # rows may have been added to the vocabulary
                shape = (update.whole.shape[0], *shape[1:])
            wanted = [update.whole.shape]
        else:
            wanted = []
        if update.left is not None and update.right is not None:
            wanted.append((update.left.shape[0], update.right.shape[1]))
        for other in wanted:
            if other != shape:
                raise ValueError(
                    f"tensor {name} is {list(tensor.shape)} in {tensor.file}, {list(other)} in the adapter"
                )
    return Spec(name, dtype if dtype and tensor.dtype in FLOATS else tensor.dtype, shape)


def vocabulary(weights: Mapping[str, Tensor], specs: Iterable[Spec], rows: int) -> int:
    """The vocabulary's size after merging, `rows` before; ValueError where only a part of its matrices grows."""
    sizes = set()
    for spec in specs:
        before = weights[spec.name].shape
        if spec.shape != before and before[0] != rows:
            raise ValueError(f"tensor {spec.name} is {list(before)} in the base, {list(spec.shape)} in the adapter")
        if len(before) == 2 and before[0] == rows:
            sizes.add(spec.shape[0])
    if len(sizes) > 1:
        raise ValueError(f"the adapter adds rows to one of embedding and output only ({rows} before, now {sizes})")
    return sizes.pop() if sizes else rows


def merged(tensor: Tensor, update: Update | None, dtype: str) -> Iterator[np.ndarray]:
    """A base tensor after the adapter, as bit patterns of `dtype` in chunks of whole rows."""
    source = update.whole if update is not None and update.whole is not None else tensor
    if update is None or update.left is None or update.right is None:
        for bits in source.chunks():
            yield bits if source.dtype == dtype else from_float32(to_float32(bits, source.dtype), dtype)
        return
    columns = source.shape[1]
    rows = max(1, CHUNK // columns)
    for number, bits in enumerate(source.chunks(rows * columns)):
        part = slice(number * rows, (number + 1) * rows)
        change = update.left[part] @ update.right * np.float32(update.scaling)
        weight = to_float32(bits, source.dtype).reshape(change.shape) + change
        if update.magnitude is not None:
            weight *= (update.magnitude[part] / np.linalg.norm(weight, axis=1))[:, None]
        yield from_float32(weight.reshape(-1), dtype)


def merge_folders(
    base: Path,
    lora: Path,
    target: str,
    limit: int,
    script: str,
    options: Mapping[str, object],
    dtype: str | None = None,
) -> str:
    """Write base + adapter to the new folder target in shards of at most `limit` bytes; returns a line that says so.

    dtype: write all floats in this type instead of the base's own. Raises ValueError and FileNotFoundError that name
    file and tensor.
    """
    adapter = read_adapter(lora)
    config = read_json(base / "config.json")
    if config.get("quantization_config"):
        raise ValueError(f"{base} is quantised; merge into the model that it was made from")
    weights = read_weights(base)
    for name in adapter.updates:
        if name not in weights:
            raise ValueError(f"{base} has no tensor {name}, which the adapter changes; this is not its base")
    tied = "lm_head.weight" not in weights
    specs = [merged_spec(tensor, adapter.updates.get(name), adapter, tied, dtype) for name, tensor in weights.items()]
    rows = vocabulary(weights, specs, config.get("vocab_size", 0))
    verify_seal(base)
    verify_seal(lora)
    with new_folder(target, sum(spec.nbytes for spec in specs)) as folder:
        carry(base, folder, (*CONFIG_FILES, *TOKENIZER_FILES, *PROMPT_FILES))
        carry(lora, folder, (*TOKENIZER_FILES, *PROMPT_FILES))
        if rows != config.get("vocab_size", 0):
            write_json(folder / "config.json", config | {"vocab_size": rows})
        if dtype:
            set_dtype(folder, TORCH_NAME[dtype])
        write_shards(folder, specs, lambda s: merged(weights[s.name], adapter.updates.get(s.name), s.dtype), limit)
        write_run(folder, script, options, {"base": base, "adapter": lora})
    return f"{target}: {len(specs)} tensors, {len(adapter.updates)} of them changed by the adapter"
