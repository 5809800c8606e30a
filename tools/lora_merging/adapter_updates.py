"""Read LoRA adapters: the update of each base tensor, and its low-rank factors.

The scaling is lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732). With DoRA
(https://arxiv.org/abs/2402.09353) each row of base + product is scaled to the trained magnitude. Other settings that
would change the result are errors.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from adapter_checks.adapter_folder import ModulePatterns, is_copy, saved_name
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import ADAPTER_FILES, Tensor, read_weights

from lora_merging.low_rank import Factors

# Keys of adapter_config.json that are supported or do not affect merging; all others must be unset.
SUPPORTED = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core",
    "loftq_config", "eva_config", "qalora_group_size", "runtime_config", "ensure_weight_tying",
}  # fmt: skip
# Values of init_lora_weights that leave the base unchanged; PiSSA, OLoRA, CorDA, LoftQ and others change it.
PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass
class TensorUpdate:
    """An adapter's update of one base tensor; the adapter's tensors are read from disk when needed."""

    left: Tensor | None = None  # (rows, r), or (r, rows) if `transposed`
    right: Tensor | None = None  # (r, columns), or (columns, r) if `transposed`
    transposed: bool = False  # the LoRA factors of an embedding are stored transposed
    scaling: float = 1.0
    magnitude: Tensor | None = None  # (rows,), DoRA
    replacement: Tensor | None = None  # replaces the base's tensor (modules_to_save)

    def product_shape(self) -> tuple[int, int] | None:
        """Return (rows, columns) of the product, or None if there is no product."""
        if self.left is None or self.right is None:
            return None
        side = int(self.transposed)
        return self.left.shape[side], self.right.shape[1 - side]


@dataclass
class LoraAdapter:
    """An adapter's configuration and its updates."""

    folder: Path
    config: dict[str, Any]
    updates: dict[str, TensorUpdate]  # by the base tensor's name
    weight: float | None = None  # factor of (adapter - base); None: the adapter changes the previous adapter's result


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError for the first setting that is not supported."""
    for name, value in config.items():
        if name == "lora_bias" and value:  # PEFT merges trained biases only into modules with a bias
            raise ValueError(
                f"{path}: lora_bias={value!r} cannot be merged here; use the adapter unmerged (--lora_weights of the "
                "demos), or train it without lora_bias"
            )
        if name not in SUPPORTED and value not in (None, False, "none", [], {}):
            raise ValueError(f"{path}: {name}={value!r} is not supported; merge with peft's merge_and_unload")
    method = config.get("init_lora_weights", True)
    if method not in PLAIN_INITIALISATIONS:
        raise ValueError(
            f"{path}: init_lora_weights={method!r} changes the base before training; convert the adapter to plain LoRA "
            "with peft (path_initial_model_for_weight_conversion) first"
        )


def float_values(tensor: Tensor) -> np.ndarray:
    """Return a whole tensor as float32 in its shape."""
    return to_float32(tensor.read(), tensor.dtype).reshape(tensor.shape)


def updates_by_tensor(tensors: Mapping[str, Tensor]) -> dict[str, TensorUpdate]:
    """Return {base tensor name: update} for an adapter's tensors; ValueError for an unsupported tensor."""
    updates: dict[str, TensorUpdate] = {}
    tensors = {saved_name(name): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if is_copy(name, tensors):
            continue
        match = re.fullmatch(r"base_model\.model\.(.+?)\.(lora_\w+|base_layer|weight|bias)(?:\.weight)?", name)
        module, part = match.groups() if match and tensor.dtype in FLOATS else ("", "")
        update = updates.setdefault(module + (".bias" if part == "bias" else ".weight"), TensorUpdate())
        if part in ("weight", "bias", "base_layer"):
            update.replacement = tensor
        elif part in ("lora_B", "lora_embedding_A"):
            update.left, update.transposed = tensor, part == "lora_embedding_A"
        elif part in ("lora_A", "lora_embedding_B"):
            update.right = tensor
        elif part == "lora_magnitude_vector" and f"base_model.model.{module}.lora_A.weight" in tensors:
            update.magnitude = tensor
        else:
            raise ValueError(f"{tensor.file}: tensor {name} is not supported; merge with peft's merge_and_unload")
    return updates


def read_adapter(folder: Path, weight: float | None = None) -> LoraAdapter:
    """Read an adapter folder that `adapter_checks` accepted; ValueError for an unsupported setting or tensor."""
    path = folder / "adapter_config.json"
    config = read_json(path)
    check_config(config, path)
    updates = updates_by_tensor(read_weights(folder, ADAPTER_FILES))
    alphas, ranks = (ModulePatterns(config.get(name)) for name in ("alpha_pattern", "rank_pattern"))
    for name, update in updates.items():
        module = name.removesuffix(".weight")
        alpha, rank = alphas.value(module, config["lora_alpha"]), ranks.value(module, config["r"])
        update.scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        shape = update.product_shape()
        if update.magnitude is not None and shape and update.magnitude.elements != shape[0]:
            raise ValueError(
                f"{update.magnitude.file}: tensor {update.magnitude.name} has length {update.magnitude.elements}, "
                f"but the matrix has {shape[0]} rows; copy it again"
            )
    return LoraAdapter(folder, config, updates, weight)


def is_zero(update: TensorUpdate) -> bool:
    """Return whether an update changes nothing: its product is zero, and nothing is replaced or scaled."""
    if update.replacement is not None or update.magnitude is not None or update.left is None:
        return False
    return not float_values(update.left).any() or (update.right is not None and not float_values(update.right).any())


def read_factors(update: TensorUpdate, base: Tensor) -> Factors | None:
    """Return the factors of the product that the adapter adds to the base tensor; None if there is no product."""
    if update.left is None or update.right is None:
        return None
    left, right = float_values(update.left), float_values(update.right)
    if update.transposed:
        left, right = np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)
    left = left * np.float32(update.scaling)
    if update.magnitude is None:
        return Factors(left, right)
    scale = row_scales(Factors(left, right), base, float_values(update.magnitude).reshape(-1))
    return Factors(left, right, scale)


def row_scales(unscaled: Factors, base: Tensor, magnitude: np.ndarray) -> np.ndarray:
    """Return DoRA's magnitude divided by the norm of each row of base + product, (rows,) float32."""

    def row_norms(rows: tuple[int, int]) -> np.ndarray:
        part = unscaled.add(to_float32(base.read(*rows), base.dtype), rows[0]).reshape(-1, unscaled.columns)
        return np.sqrt(np.square(part, dtype=np.float64).sum(axis=1))

    norms = np.concatenate(list(in_order(row_norms, base.row_ranges())))
    return (magnitude / norms).astype(np.float32)
