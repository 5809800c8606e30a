"""LoRA adapters merged into their base: W + scaling * B @ A, accumulated in float32, rounded once, streamed.

scaling is lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732). With DoRA
(https://arxiv.org/abs/2402.09353) each row of that sum is scaled to the trained magnitude. Products are exact
(low_rank.py), so the result is the same on every machine and with any number of threads. What an adapter's
configuration asks beyond that is refused by name.

Memory: the factors of one matrix. Not a script: weight_diff.py and export_hf_checkpoint.py import it.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from adapter_checks.adapter_folder import matching_value
from adapter_checks.base_fit import EMBEDDING, OUTPUT, check_adapter
from checkpoint_io import resume_journal
from checkpoint_io.bit_patterns import FLOATS, cast, to_float32
from checkpoint_io.checkpoint_folders import (
    CONFIG_FILES,
    PROMPT_FILES,
    TOKENIZER_FILES,
    carry,
    check_tokenizer,
    existing,
    new_folder,
    read_json,
    set_dtype,
    write_json,
    write_run,
)
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.seal_check import verify_seal
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import (
    ADAPTER_FILES,
    CHUNK,
    TORCH_NAME,
    Spec,
    Tensor,
    check_complete,
    check_finite,
    cuts,
    read_weights,
)

from lora_merging.low_rank import Factors, Sum

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
    """What an adapter does to one tensor of the base, its tensors still on disk."""

    left: Tensor | None = None  # (rows, r), or (r, rows) where `flipped`
    right: Tensor | None = None  # (r, columns), or (columns, r)
    flipped: bool = False  # LoRA of an embedding is stored the other way round
    scaling: float = 1.0
    magnitude: Tensor | None = None  # (rows,), DoRA
    whole: Tensor | None = None  # replaces the base's tensor (modules_to_save)

    def shape(self) -> tuple[int, int] | None:
        """(rows, columns) of the product; None where there is none."""
        if self.left is None or self.right is None:
            return None
        return (self.left.shape[1], self.right.shape[0]) if self.flipped else (self.left.shape[0], self.right.shape[1])


@dataclass
class Adapter:
    folder: Path
    config: dict[str, Any]
    updates: dict[str, Update]  # by the name of the base's tensor
    weight: float = 1.0  # how much of its change is taken


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


def values(tensor: Tensor) -> np.ndarray:
    """A whole adapter tensor as float32 in its shape."""
    return to_float32(tensor.read(), tensor.dtype).reshape(tensor.shape)


def collect(tensors: Mapping[str, Tensor]) -> dict[str, Update]:
    """An adapter's tensors by the base's tensor that they change; ValueError names the first of an unknown kind."""
    updates: dict[str, Update] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"base_model\.model\.(.+?)\.(lora_\w+|base_layer|weight|bias)(?:\.weight)?", name)
        module, part = found.groups() if found and tensor.dtype in FLOATS else ("", "")
        update = updates.setdefault(module + (".bias" if part == "bias" else ".weight"), Update())
        if part in ("weight", "bias", "base_layer"):
            update.whole = tensor
        elif part in ("lora_B", "lora_embedding_A"):
            update.left, update.flipped = tensor, part == "lora_embedding_A"
        elif part in ("lora_A", "lora_embedding_B"):
            update.right = tensor
        elif part == "lora_magnitude_vector" and f"base_model.model.{module}.lora_A.weight" in tensors:
            update.magnitude = tensor
        else:
            raise ValueError(f"{tensor.file}: tensor {name} is not handled here; merge with peft's merge_and_unload")
    return updates


def read_adapter(folder: Path, weight: float = 1.0) -> Adapter:
    """Read a LoRA adapter's folder; ValueError names the setting or tensor that is damaged or not handled."""
    path = folder / "adapter_config.json"
    config = read_json(path)
    check_config(config, path)
    updates = collect(read_weights(folder, ADAPTER_FILES))
    for name, update in updates.items():
        module = name.removesuffix(".weight")
        alpha = matching_value(config.get("alpha_pattern"), module, config["lora_alpha"])
        rank = matching_value(config.get("rank_pattern"), module, config["r"])
        update.scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(folder, config, updates, weight)


def factors(update: Update, base: Tensor, weight: float = 1.0) -> Factors | None:
    """What the adapter adds to the base's tensor; None where it adds no product.

    weight: how much of the product is taken; with DoRA, whose sum is not linear, the caller must blend instead.
    """
    if update.left is None or update.right is None:
        return None
    left, right = values(update.left), values(update.right)
    if update.flipped:
        left, right = np.ascontiguousarray(left.T), np.ascontiguousarray(right.T)
    left = left * np.float32(update.scaling * weight)
    if update.magnitude is None:
        return Factors(left, right)
    return Factors(left, right, row_scales(Sum(Factors(left, right)), base, values(update.magnitude).reshape(-1)))


def row_scales(total: Sum, base: Tensor, magnitude: np.ndarray) -> np.ndarray:
    """(rows,) float32: DoRA's magnitude over the length of each row of base + product."""

    def lengths(rows: tuple[int, int]) -> np.ndarray:
        below = base.read(rows[0] * columns, rows[1] * columns)
        part = total.rows(below, base.dtype, rows[0], "F32").view(np.float32).reshape(-1, columns)
        return np.sqrt(np.square(part, dtype=np.float64).sum(axis=1))

    columns = total.factors.right.shape[1]
    parts = in_order(lengths, cuts(base.shape[0], max(1, CHUNK // columns)))
    return (magnitude / np.concatenate(list(parts))).astype(np.float32)


def merged_spec(tensor: Tensor, adapters: Sequence[Adapter], dtype: str | None) -> Spec:
    """What a base tensor is after the adapters; ValueError names it where they do not fit."""
    name, shape = tensor.name, tensor.shape
    for adapter in adapters:
        update = adapter.updates.get(name)
        if update is None:
            continue
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: tensor {name} is {tensor.dtype}; merge into the unquantised base")
        wanted: list[tuple[int, ...]] = []
        if update.whole is not None:
            if len(shape) == 2:  # rows may have been added to the vocabulary
                shape = (update.whole.shape[0], *shape[1:])
            wanted.append(update.whole.shape)
        if (product := update.shape()) is not None:
            wanted.append(product)
        for other in wanted:
            if other != shape:
                raise ValueError(
                    f"tensor {name} is {list(tensor.shape)} in {tensor.file}, {list(other)} in {adapter.folder}"
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


def refuse_half_of_tied(adapter: Adapter, base: Path) -> None:
    """ValueError where the adapter changes one use of a matrix that is both embedding and output of the base."""
    if adapter.config.get("ensure_weight_tying"):
        return
    for name in adapter.updates:
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module in (EMBEDDING, OUTPUT):
            raise ValueError(
                f"{base} has one matrix for embedding and output, and {adapter.folder} changes its use as {module} "
                "only; save the base with tie_word_embeddings=False, or use the adapter without merging it"
            )


class Steps:
    """What the adapters, one after the other, make of one tensor of the base."""

    def __init__(self, tensor: Tensor, adapters: Sequence[Adapter]) -> None:
        self.tensor = tensor
        self.steps: list[
            tuple[Tensor | None, Sum | None, float]
        ] = []  # a whole tensor, a sum, what share of the change
        for adapter in adapters:
            if (update := adapter.updates.get(tensor.name)) is None:
                continue
            if update.magnitude is not None and self.steps:
                raise ValueError(
                    f"{adapter.folder} scales the rows of {tensor.name} (DoRA), which another adapter changes before "
                    "it; merge that one alone, then this one into the result"
                )
            if update.whole is not None:
                self.steps.append((update.whole, None, adapter.weight))
            blended = update.magnitude is not None
            below = update.whole or tensor
            if (added := factors(update, below, 1.0 if blended else adapter.weight)) is not None:
                self.steps.append((None, Sum(added), adapter.weight if blended else 1.0))

    def bits(self, first: int, last: int, dtype: str) -> np.ndarray:
        """Bit pattern in `dtype` of elements first … last, which are whole rows where there are sums."""
        end = self.tensor.elements  # a vocabulary may have grown beyond it
        bits, kind = self.tensor.read_once(min(first, end), min(last, end)), self.tensor.dtype
        for whole, total, share in self.steps:
            before, blend = bits, share != 1.0
            if whole is not None:
                bits, after = whole.read(first, last), whole.dtype
            elif total is not None:
                after = "F32" if blend or total is not self.steps[-1][1] else dtype
                bits = total.rows(before, kind, first // total.factors.right.shape[1], after)
            if blend:
                bits, after = blended(before, kind, bits, after, share), "F32"
            kind = after
        return cast(bits, kind, dtype) if kind != dtype else bits


def blended(before: np.ndarray, dtype: str, after: np.ndarray, changed: str, share: float) -> np.ndarray:
    """before + share * (after - before) as float32 bit patterns; elements that `before` lacks are `after`'s."""
    values = np.array(to_float32(after, changed))
    old = to_float32(before, dtype)
    values[: old.size] = old + np.float32(share) * (values[: old.size] - old)
    return values.view(np.uint32)


def merged(spec: Spec, tensor: Tensor, adapters: Sequence[Adapter]) -> Iterator[np.ndarray]:
    """A base tensor after the adapters, as bit patterns of spec's type in chunks of whole rows."""
    steps = Steps(tensor, adapters)
    columns = spec.shape[-1] if len(spec.shape) > 1 else 1
    for bits in in_order(
        lambda cut: steps.bits(*cut, spec.dtype), cuts(spec.elements, max(1, CHUNK // columns) * columns)
    ):
        check_finite(bits, spec)
        yield bits


def weighted(names: Sequence[str], weights: Sequence[float], option: str) -> list[tuple[Path, float]]:
    """Adapters' folders with their weights: one for all, or one for each; ValueError on another number of weights."""
    shares = list(weights) * len(names) if len(weights) == 1 else list(weights)
    if not names or len(shares) != len(names):
        raise ValueError(
            f"--weights takes one number, or one for each of the {len(names)} adapters, not {len(weights)} of them"
        )
    folders = [existing(name, option, "adapter_config.json") for name in names]
    return list(zip(folders, shares, strict=True))


def merge_folders(
    base: Path,
    loras: Sequence[tuple[Path, float]],
    target: str,
    limit: int,
    script: str,
    options: Mapping[str, object],
    dtype: str | None = None,
) -> str:
    """Write base + adapters to the new folder target in shards of at most `limit` bytes; returns a line that says so.

    loras: adapters' folders in the order in which they are merged, each with the share of its change that is taken.
    dtype: write all floats in this type instead of the base's own. Raises ValueError and FileNotFoundError that name
    file and tensor.
    """
    for lora, _ in loras:
        check_adapter(lora, base)
    adapters = [read_adapter(lora, weight) for lora, weight in loras]
    config = read_json(base / "config.json")
    if config.get("quantization_config"):
        raise ValueError(f"{base} is quantised; merge into the model that it was made from")
    weights = read_weights(base)
    check_complete(base, weights)
    for adapter in adapters if f"{OUTPUT}.weight" not in weights else ():
        refuse_half_of_tied(adapter, base)
    changed = {name: adapter.folder for adapter in adapters for name in adapter.updates}
    for name, folder in changed.items():
        if name not in weights:
            raise ValueError(f"{base} has no tensor {name}, which {folder} changes; this is not its base")
    specs = [merged_spec(tensor, adapters, dtype) for tensor in weights.values()]
    rows = vocabulary(weights, specs, config.get("vocab_size", 0))
    inputs = [base, *(lora for lora, _ in loras)]
    for folder in inputs:
        verify_seal(folder)
    check_tokenizer(*inputs)
    run = resume_journal.identity(script, options, inputs)
    with new_folder(target, sum(spec.nbytes for spec in specs), run) as folder:
        carry(base, folder, (*CONFIG_FILES, *TOKENIZER_FILES, *PROMPT_FILES))
        for lora, _ in loras:
            carry(lora, folder, ("generation_config.json", *TOKENIZER_FILES, *PROMPT_FILES))
        if rows != config.get("vocab_size", 0):
            write_json(folder / "config.json", config | {"vocab_size": rows})
        if dtype:
            set_dtype(folder, TORCH_NAME[dtype])
        hashes = write_shards(folder, specs, lambda spec: merged(spec, weights[spec.name], adapters), limit)
        verify_written(folder, hashes)
        parents = {"base": base} | {f"adapter{i or ''}": lora for i, (lora, _) in enumerate(loras)}
        write_run(folder, script, options, parents)
    return f"{target}: {len(specs)} tensors, {len(changed)} of them changed by the adapter{'s' * (len(loras) > 1)}"
