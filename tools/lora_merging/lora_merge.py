"""Merge LoRA adapters into their base: W + scaling * B @ A, accumulated in float32, rounded once, streamed.

Without weights, each adapter changes the result of the previous one, for adapters that were trained one after another;
a whole matrix (modules_to_save) of a later adapter replaces the matrix of an earlier one. With weights w_i, the result
is base + sum of w_i * (adapter_i - base), where adapter_i is the base with this adapter alone.

Products are reproducible (low_rank.py), so the result does not depend on the machine or the number of threads. The
factors of one matrix are in memory at a time, and chunks of weights.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from adapter_checks.base_fit import read_adapter_for_base
from checkpoint_io import checkpoint_folders
from checkpoint_io.bit_patterns import FLOATS, cast, from_float32, to_float32
from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.small_files import check_tokenizer, copy_small_files
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import TORCH_NAME, Spec, Tensor, check_complete, check_finite, read_weights
from checkpoint_io.tied_matrices import OUTPUT, embedding_name, has_own_output, set_untied
from checkpoint_seals.seal_check import verify_seal
from partial_folders import resume_journal
from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path

from lora_merging.adapter_updates import LoraAdapter, TensorUpdate, is_zero, read_adapter, read_factors
from lora_merging.low_rank import Factors


def merged_spec(tensor: Tensor, adapters: Sequence[LoraAdapter], dtype: str | None) -> Spec:
    """Return the type and shape of a base tensor after merging; ValueError if an adapter does not match the base."""
    shape = tensor.shape
    for adapter in adapters:
        if (update := adapter.updates.get(tensor.name)) is None:
            continue
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: tensor {tensor.name} is {tensor.dtype}; merge into the unquantised base")
        replaced = shape if update.replacement is None else update.replacement.shape
        if len(shape) == 2 and replaced[0] < shape[0]:
            raise ValueError(
                f"{adapter.folder} has {replaced[0]} rows for {tensor.name}, but the base or an earlier adapter has "
                f"{shape[0]}; give the adapters in the order in which they were trained"
            )
        if len(shape) == 2:  # the vocabulary may have grown
            shape = (replaced[0], shape[1])
        for other in (replaced, update.product_shape() or shape):
            if other != shape:
                raise ValueError(
                    f"tensor {tensor.name} has the shape {list(tensor.shape)} in {tensor.file}, but {list(other)} in "
                    f"{adapter.folder}; merge it into the base that it was trained on"
                )
    return Spec(tensor.name, dtype if dtype and tensor.dtype in FLOATS else tensor.dtype, shape)


def untie_if_changed(weights: dict[str, Tensor], adapters: Sequence[LoraAdapter]) -> bool:
    """Untie the matrices of a tied base if an adapter changes only input or output; return True if they are untied.

    Adds the output matrix to `weights`, and shared changes to both names in `adapters`. An adapter of a tied base
    changes the input only (embed_tokens) or the output only (lm_head), unless it was trained with ensure_weight_tying:
    then its change applies to both, whichever name it is stored under.
    """
    embedding = embedding_name(weights)
    if OUTPUT in weights or not embedding:
        return False
    for adapter in adapters:
        if not adapter.config.get("ensure_weight_tying") and adapter.updates.keys() & {embedding, OUTPUT}:
            weights[OUTPUT] = replace(weights[embedding], name=OUTPUT)
            share_added_rows(adapter, embedding, weights[embedding].shape)
    for adapter in adapters:
        if adapter.config.get("ensure_weight_tying"):
            shared = adapter.updates.pop(OUTPUT, None) or adapter.updates.get(embedding)
            if shared:
                adapter.updates |= dict.fromkeys(weights.keys() & {embedding, OUTPUT}, shared)
    return OUTPUT in weights


def share_added_rows(adapter: LoraAdapter, embedding: str, shape: tuple[int, ...]) -> None:
    """Copy an enlarged matrix to the other tied matrix if the adapter changes only one of embedding and output.

    If rows were added before training, PEFT stores the enlarged matrix once, beside its low-rank change. shape: shape
    of the base's matrix.
    """
    for name, other in ((embedding, OUTPUT), (OUTPUT, embedding)):
        update = adapter.updates.get(name)
        enlarged = update.replacement if update and update.left else None
        if other not in adapter.updates and enlarged and enlarged.shape != shape:
            adapter.updates[other] = TensorUpdate(replacement=enlarged)
            return


def vocabulary_rows(
    specs: Sequence[Spec], weights: Mapping[str, Tensor], vocabulary: int, changed: Mapping[str, Path]
) -> set[int]:
    """Return the set of the row counts of embedding and output matrix after merging; ValueError if they differ.

    The set has one element, or none if no matrix has `vocabulary` rows before merging. changed: tensor name -> folder
    of the last adapter that changes the tensor.
    """
    rows = {spec.name: spec.shape[0] for spec in specs if len(spec.shape) == 2}
    rows = {name: count for name, count in rows.items() if weights[name].shape[0] == vocabulary}
    if len(set(rows.values())) > 1:
        name, largest = max(rows.items(), key=lambda row: row[1])
        other, smallest = min(rows.items(), key=lambda row: row[1])
        raise ValueError(
            f"{changed[name]} has {largest} rows for {name}, but {other} would have {smallest} (embedding and output "
            "matrix need the same number); train it with --lora_modules_to_save embed_tokens,lm_head"
        )
    return set(rows.values())


@dataclass(frozen=True)
class AdapterChange:
    """The change of one tensor by one adapter: a replacement, then a product."""

    replacement: Tensor | None
    product: Factors | None
    weight: float | None  # as in LoraAdapter

    def apply(self, values: np.ndarray, first: int, last: int) -> np.ndarray:
        """Return the changed elements first to last as float32; fewer if the adapter has fewer rows.

        values: these elements before the change, whole rows; fewer if the tensor has fewer rows.
        """
        if self.replacement is not None:
            values = replaced_values(self.replacement, first, last)
        if self.product is not None:
            values = self.product.add(values[: max(0, self.product.elements - first)], first)
        return values


def replaced_values(replacement: Tensor, first: int, last: int) -> np.ndarray:
    """Return the elements first to last of a replacement as float32; fewer if it has fewer rows."""
    bounds = (min(at, replacement.elements) for at in (first, last))  # another adapter may add more rows
    return to_float32(replacement.read(*bounds), replacement.dtype)


def tensor_changes(tensor: Tensor, adapters: Sequence[LoraAdapter]) -> list[AdapterChange]:
    """Return the changes of a base tensor in merging order; ValueError for DoRA on the result of another adapter."""
    changes: list[AdapterChange] = []
    for adapter in adapters:
        if (update := adapter.updates.get(tensor.name)) is None:
            continue
        if update.magnitude is not None and changes and adapter.weight is None:
            raise ValueError(
                f"{adapter.folder} scales the rows of {tensor.name} (DoRA) after another adapter changed them; "
                "merge the other one alone, then this one into the result"
            )
        product = read_factors(update, update.replacement or tensor)
        changes.append(AdapterChange(update.replacement, product, adapter.weight))
    return changes


def weighted_sum(base: np.ndarray, changes: Sequence[AdapterChange], first: int, last: int) -> np.ndarray:
    """Return base + the weighted sum of (changed - base) for the elements first to last, float64.

    base: these elements; fewer if the base has fewer rows. A row that the base lacks is taken from the first adapter
    that has it. The sum is computed as (1 - sum of weights) * base + sum of weight * changed, so that a
    weight of 1 gives the adapter's own values.
    """
    for change in changes:
        if change.replacement is not None:
            added = replaced_values(change.replacement, first + base.size, last)
            base = np.concatenate((base, added))
    total = base * (1.0 - np.float64(sum(change.weight or 0.0 for change in changes)))
    for change in changes:
        changed = base.copy()
        part = change.apply(base, first, last)
        changed[: part.size] = part
        total += np.float64(change.weight or 0.0) * changed
    return np.asarray(total)


def rounded_sum(values: np.ndarray, spec: Spec) -> np.ndarray:
    """Return a float64 sum as bit patterns of spec's type; ValueError if it is finite but too large for the type."""
    with np.errstate(over="ignore"):
        bits = from_float32(values.astype(np.float32), spec.dtype)
    if np.isfinite(values).all():
        try:
            check_finite(bits, spec)
        except ValueError:
            raise ValueError(
                f"--weights are too large: {spec.name} reaches {np.abs(values).max():.3g}, which {spec.dtype} cannot "
                "store; give smaller weights"
            ) from None
    return bits


def merged_chunks(spec: Spec, tensor: Tensor, adapters: Sequence[LoraAdapter]) -> Iterator[np.ndarray]:
    """Yield a merged tensor as bit patterns of spec's type, in chunks of whole rows."""
    changes = tensor_changes(tensor, adapters)

    def merge_rows(bounds: tuple[int, int]) -> np.ndarray:
        first, last = (min(element, tensor.elements) for element in bounds)
        bits = tensor.read_once(first, last)
        if not changes:
            return cast(bits, tensor.dtype, spec.dtype)
        values = to_float32(bits, tensor.dtype)
        if changes[0].weight is not None:
            return rounded_sum(weighted_sum(values, changes, *bounds), spec)
        for change in changes:
            values = change.apply(values, *bounds)
        return from_float32(values, spec.dtype)

    remedy = "use intact copies of base and adapters"
    if spec.dtype == "F16" and tensor.dtype != "F16":
        remedy += ", or omit --is_fp16 if a value is too large for float16"
    for bits in in_order(merge_rows, spec.row_ranges()):
        check_finite(bits, spec, remedy)
        yield bits


def weighted_adapters(names: Sequence[str], weights: Sequence[float], option: str) -> list[tuple[Path, float | None]]:
    """Return [(adapter folder, weight)]; the weights are None without `weights`.

    weights: one for all adapters, or one per adapter. Raises ValueError for another number of weights. Prints a notice
    if an adapter is given more than once.
    """
    factors: list[float | None] = [*weights] or [None]
    factors = factors * len(names) if len(factors) == 1 else factors
    if not names or len(factors) != len(names):
        raise ValueError(
            f"--weights takes one number, or one for each of the {len(names)} adapters, not {len(weights)} numbers"
        )
    folders = [checkpoint_folders.existing_folder(name, option, "adapter_config.json") for name in names]
    for folder, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            print(
                f"notice: the adapter {folder} is given {count} times and changes the base each time", file=sys.stderr
            )
    return list(zip(folders, factors, strict=True))


def has_no_effect(adapter: LoraAdapter, name: str) -> bool:
    """Return whether an adapter's update of a tensor is zero, or has the weight 0."""
    return adapter.weight == 0 or is_zero(adapter.updates[name])


def merge_folders(
    base: Path,
    loras: Sequence[tuple[Path, float | None]],
    target: str,
    shard_limit: int,
    script: str,
    options: Mapping[str, object],
    dtype: str | None = None,
) -> str:
    """Write base + adapters to the new folder target in shards of at most `shard_limit` bytes; return a summary line.

    loras: adapter folders in merging order, each with its weight (LoraAdapter). dtype: write all floats in this type
    instead of the base's. Raises ValueError or FileNotFoundError that names file and tensor.
    """
    inputs = [base, *(lora for lora, _ in loras)]
    folder_path(target, inputs)
    for lora, _ in loras:
        read_adapter_for_base(lora, base)
    adapters = [read_adapter(lora, weight) for lora, weight in loras]
    config = read_json(base / "config.json")
    if config.get("quantization_config"):
        raise ValueError(f"{base} is quantised; merge into the original model")
    weights = read_weights(base)
    check_complete(base, weights)
    if config.get("tie_word_embeddings") and not has_own_output(weights):
        weights.pop(OUTPUT, None)
    untied = untie_if_changed(weights, adapters)
    changed = {name: adapter.folder for adapter in adapters for name in adapter.updates}
    for name, folder in changed.items():
        if name not in weights:
            raise ValueError(f"{base} has no tensor {name}, which {folder} changes; use the adapter's base")
    specs = [merged_spec(tensor, adapters, dtype) for tensor in weights.values()]
    vocabulary = config.get("vocab_size", 0)
    rows = vocabulary_rows(specs, weights, vocabulary, changed)
    check_tokenizer(*inputs, rows=next(iter(rows), None))
    for folder in inputs:
        verify_seal(folder)
    run = resume_journal.run_identity(script, options, inputs)
    with new_folder(target, sum(spec.nbytes for spec in specs), run, inputs) as folder:
        template = copy_small_files(inputs, folder)
        if rows - {vocabulary}:
            checkpoint_folders.write_json(folder / "config.json", config | {"vocab_size": rows.pop()})
        if dtype:
            checkpoint_folders.set_dtype(folder, TORCH_NAME[dtype])
        if untied or (config.get("tie_word_embeddings") and OUTPUT in weights):
            set_untied(folder)
        hashes = write_shards(
            folder, specs, lambda spec: merged_chunks(spec, weights[spec.name], adapters), shard_limit
        )
        verify_written(folder, hashes)
        parents = {"base": base} | {f"adapter{i or ''}": lora for i, (lora, _) in enumerate(loras)}
        checkpoint_folders.write_run_record(folder, script, options, parents)
    same_shape = {spec.name for spec in specs if spec.shape == weights[spec.name].shape}
    zero = sum(
        all(has_no_effect(each, name) for each in adapters if name in each.updates)
        for name in same_shape & changed.keys()
    )
    note = f" ({zero} updates are zero)" if zero else ""
    note += "; embedding and output matrix are no longer tied" if untied else ""
    adapter = f"the adapter{'s' * (len(loras) > 1)}"
    return f"{target}: {len(specs)} tensors, {len(changed) - zero} of them changed by {adapter}{note}{template}"
