"""Merge LoRA adapters into their base: W + scaling * B @ A, accumulated in float32, rounded once, streamed.

Products are reproducible (low_rank.py), so the result does not depend on the machine or the number of threads. Memory:
the factors of one matrix.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from adapter_checks.base_fit import EMBEDDING, OUTPUT, read_adapter_for_base
from checkpoint_io import resume_journal
from checkpoint_io.bit_patterns import FLOATS, cast, to_float32
from checkpoint_io.checkpoint_folders import (
    PROMPT_FILES,
    SMALL_FILES,
    TOKENIZER_FILES,
    check_tokenizer,
    copy_files,
    existing_folder,
    new_folder,
    read_json,
    set_dtype,
    write_json,
    write_run_record,
)
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import CHUNK, TORCH_NAME, Spec, Tensor, check_complete, check_finite, ranges, read_weights
from checkpoint_seals.seal_check import verify_seal

from lora_merging.adapter_updates import LoraAdapter, factors, read_adapter
from lora_merging.low_rank import Sum


def merged_spec(tensor: Tensor, adapters: Sequence[LoraAdapter], dtype: str | None) -> Spec:
    """Return type and shape of a base tensor after merging; ValueError if an adapter does not fit."""
    name, shape = tensor.name, tensor.shape
    for adapter in adapters:
        update = adapter.updates.get(name)
        if update is None:
            continue
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: tensor {name} is {tensor.dtype}; merge into the unquantised base")
        wanted: list[tuple[int, ...]] = []
        if update.whole is not None:
            if len(shape) == 2:  # the vocabulary may have grown
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
    """Return the vocabulary size after merging; rows: the size before.

    Raises ValueError if only one of embedding and output grows, or a tensor of another size changes its shape.
    """
    sizes = set()
    for spec in specs:
        before = weights[spec.name].shape
        if spec.shape != before and before[0] != rows:
            raise ValueError(f"tensor {spec.name} is {list(before)} in the base, {list(spec.shape)} in the adapter")
        if len(before) == 2 and before[0] == rows:
            sizes.add(spec.shape[0])
    if len(sizes) > 1:
        raise ValueError(f"the adapter adds rows to only one of embedding and output ({rows} before, now {sizes})")
    return sizes.pop() if sizes else rows


def refuse_half_of_tied(adapter: LoraAdapter, base: Path) -> None:
    """Raise ValueError if the adapter changes only one use of the base's tied embedding and output matrix."""
    if adapter.config.get("ensure_weight_tying"):
        return
    modules = (name.removesuffix(".weight").rpartition(".")[2] for name in adapter.updates)
    changed = next((module for module in modules if module in (EMBEDDING, OUTPUT)), None)
    if changed:
        raise ValueError(
            f"{base} has one matrix for embedding and output, and {adapter.folder} changes only its use as {changed}; "
            "save the base with tie_word_embeddings=False, or use the adapter without merging it"
        )


class MergeSteps:
    """The successive changes of one base tensor by several adapters."""

    def __init__(self, tensor: Tensor, adapters: Sequence[LoraAdapter]) -> None:
        self.tensor = tensor
        # (tensor that replaces the base tensor, product that is added, factor of the change)
        self.steps: list[tuple[Tensor | None, Sum | None, float]] = []
        for adapter in adapters:
            if (update := adapter.updates.get(tensor.name)) is None:
                continue
            if update.magnitude is not None and self.steps:
                raise ValueError(
                    f"{adapter.folder} scales the rows of {tensor.name} (DoRA) after another adapter changed them; "
                    "merge the other one alone, then this one into the result"
                )
            if update.whole is not None:
                self.steps.append((update.whole, None, adapter.weight))
            blended = update.magnitude is not None
            below = update.whole or tensor
            if (added := factors(update, below, 1.0 if blended else adapter.weight)) is not None:
                self.steps.append((None, Sum(added), adapter.weight if blended else 1.0))

    def bits(self, first: int, last: int, dtype: str) -> np.ndarray:
        """Return the merged bit patterns in `dtype` of elements first to last, which must be whole rows."""
        end = self.tensor.elements  # new vocabulary rows lie beyond it
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
    """Return before + share * (after - before) as float32 bits; elements beyond `before` are those of `after`."""
    values = np.array(to_float32(after, changed))
    old = to_float32(before, dtype)
    values[: old.size] = old + np.float32(share) * (values[: old.size] - old)
    return values.view(np.uint32)


def merged(spec: Spec, tensor: Tensor, adapters: Sequence[LoraAdapter]) -> Iterator[np.ndarray]:
    """Yield a merged tensor as bit patterns of spec's type, in chunks of whole rows."""
    steps = MergeSteps(tensor, adapters)
    columns = spec.shape[-1] if len(spec.shape) > 1 else 1
    for bits in in_order(
        lambda cut: steps.bits(*cut, spec.dtype), ranges(spec.elements, max(1, CHUNK // columns) * columns)
    ):
        check_finite(bits, spec)
        yield bits


def weighted_adapters(names: Sequence[str], weights: Sequence[float], option: str) -> list[tuple[Path, float]]:
    """Return [(adapter folder, weight)]; weights: one for all adapters, or one per adapter, else ValueError."""
    shares = list(weights) * len(names) if len(weights) == 1 else list(weights)
    if not names or len(shares) != len(names):
        raise ValueError(
            f"--weights takes one number, or one for each of the {len(names)} adapters, not {len(weights)} of them"
        )
    folders = [existing_folder(name, option, "adapter_config.json") for name in names]
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
    """Write base + adapters to the new folder target in shards of at most `limit` bytes; return a summary line.

    loras: adapter folders in merging order, each with the factor of its change. dtype: write all floats in this type
    instead of the base's. Raises ValueError or FileNotFoundError that names file and tensor.
    """
    for lora, _ in loras:
        read_adapter_for_base(lora, base)
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
            raise ValueError(f"{base} has no tensor {name}, which {folder} changes; use the adapter's base")
    specs = [merged_spec(tensor, adapters, dtype) for tensor in weights.values()]
    rows = vocabulary(weights, specs, config.get("vocab_size", 0))
    inputs = [base, *(lora for lora, _ in loras)]
    for folder in inputs:
        verify_seal(folder)
    check_tokenizer(*inputs)
    run = resume_journal.run_identity(script, options, inputs)
    with new_folder(target, sum(spec.nbytes for spec in specs), run) as folder:
        copy_files(base, folder, SMALL_FILES)
        for lora, _ in loras:
            copy_files(lora, folder, (*TOKENIZER_FILES, *PROMPT_FILES, "generation_config.json"))
        if rows != config.get("vocab_size", 0):
            write_json(folder / "config.json", config | {"vocab_size": rows})
        if dtype:
            set_dtype(folder, TORCH_NAME[dtype])
        hashes = write_shards(folder, specs, lambda spec: merged(spec, weights[spec.name], adapters), limit)
        verify_written(folder, hashes)
        parents = {"base": base} | {f"adapter{i or ''}": lora for i, (lora, _) in enumerate(loras)}
        write_run_record(folder, script, options, parents)
    return f"{target}: {len(specs)} tensors, {len(changed)} of them changed by the adapter{'s' * (len(loras) > 1)}"
