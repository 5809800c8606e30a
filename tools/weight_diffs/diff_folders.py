"""Write diff folders, and recover tuned models from their base and a diff."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter_checks.base_fit import read_adapter_for_base
from checkpoint_io import resume_journal
from checkpoint_io.checkpoint_folders import (
    SMALL_FILES,
    check_tokenizer,
    copy_files,
    existing_folder,
    new_folder,
    set_dtype,
    write_run_record,
)
from checkpoint_io.tensor_files import mismatched_tensors, read_back_error, write_shards
from checkpoint_io.tensors import TORCH_NAME, Spec, Tensor, check_complete, has_weights, read_weights
from checkpoint_seals.seal_check import verify_seal
from lora_merging import adapter_updates
from lora_merging.low_rank import Factors

from weight_diffs import additive_diff, diff_writer, exact_diff
from weight_diffs.rank_search import RankSearch

SCRIPT = "tools/weight_diff.py"
logger = logging.getLogger("weight_diff")


@dataclass(frozen=True)
class DiffInputs:
    """The two input folders by role (raw and tuned, or raw and diff), and the command's options."""

    folders: dict[str, Path]
    options: Mapping[str, object]
    limit: int  # bytes of a shard

    def identity(self, *more: Path) -> str:
        return resume_journal.run_identity(SCRIPT, self.options, [*self.folders.values(), *more])


def open_inputs(options: Mapping[str, object], limit: int, role: str) -> DiffInputs:
    """Open the folders given by --path_raw and --path_<role>, and verify their seals if present.

    For an exact diff, only the sizes of weight files are verified, because recovery compares every tensor.
    """
    names = ("raw", role)
    paths = (existing_folder(options[f"path_{name}"], f"--path_{name}", "config.json") for name in names)
    folders = dict(zip(names, paths, strict=True))
    is_exact = has_weights(folders[role], exact_diff.DIFF_FILES)
    for folder in folders.values():
        verify_seal(folder, weights=not is_exact)
    return DiffInputs(folders, options, limit)


def complete_weights(folder: Path) -> dict[str, Tensor]:
    """Return the folder's weights; ValueError if a tensor that config.json requires is missing."""
    weights = read_weights(folder)
    check_complete(folder, weights)
    return weights


def write_exact(inputs: DiffInputs, target: str, adapter: str, low_rank: bool) -> str:
    """Write an exact diff to the new folder target; return a summary line.

    adapter: the LoRA adapter that was merged into the tuned model, or "". low_rank: search for low-rank changes.
    """
    check_tokenizer(inputs.folders["tuned"])
    raw, tuned = (complete_weights(folder) for folder in inputs.folders.values())
    if adapter:
        read_adapter_for_base(adapter, inputs.folders["raw"])
    lora = adapter_updates.read_adapter(existing_folder(adapter, "--adapter")) if adapter else None
    for name, tensor in tuned.items():
        elements = tensor.elements - exact_diff.from_base(tensor, exact_diff.counterpart(name, raw))
        if elements:
            logger.warning("%s: %d of %d elements stored without the base", name, elements, tensor.elements)

    def known_factors(tensor: Tensor) -> Factors | None:
        update = lora.updates.get(tensor.name) if lora else None
        if update is None or tensor.name not in raw or not update.shape() == tensor.shape == raw[tensor.name].shape:
            return None
        return adapter_updates.factors(update, raw[tensor.name])

    run = inputs.identity(*([lora.folder] if lora else []))
    with new_folder(target, 0, run) as folder:  # the compressed size is not known in advance
        copy_files(inputs.folders["tuned"], folder, SMALL_FILES)
        ranked = diff_writer.write(folder, tuned, raw, known_factors, inputs.limit, RankSearch() if low_rank else None)
        write_run_record(folder, f"{SCRIPT} make_diff", inputs.options, inputs.folders)
        size = sum(file.stat().st_size for file in folder.glob("diff*.safetensors"))
    share = size / sum(tensor.nbytes for tensor in tuned.values())
    note = f", {ranked} matrices as a change of low rank" if ranked else ""
    return f"{target}: exact diff, {size / 1e6:.2f} MB, {share:.1%} of the tuned weights{note}"


def write_additive(inputs: DiffInputs, target: str, dtype: str) -> str:
    """Write an additive diff in `dtype` (F16 or F32) to the new folder target; return a summary line."""
    check_tokenizer(inputs.folders["tuned"])
    raw, tuned = (complete_weights(folder) for folder in inputs.folders.values())
    tuned = additive_diff.matching_tensors(tuned, raw, inputs.folders["raw"])
    size = stored_bytes(tuned, dtype)
    with new_folder(target, size, inputs.identity()) as folder:
        copy_files(inputs.folders["tuned"], folder, SMALL_FILES)
        set_dtype(folder, TORCH_NAME[dtype])
        changed = additive_diff.write(folder, tuned, raw, dtype, inputs.limit)
        write_run_record(folder, f"{SCRIPT} make_diff", inputs.options, inputs.folders)
    share = size / sum(tensor.nbytes for tensor in tuned.values())
    return (
        f"{target}: additive diff, {size / 1e6:.2f} MB, {share:.1%} of the tuned weights; "
        f"recovery will change {changed:.2%} of the weights in their last bits"
    )


def stored_bytes(tensors: Mapping[str, Tensor], dtype: str) -> int:
    return sum(Spec(name, dtype, tensor.shape).nbytes for name, tensor in tensors.items())


def recover_exact(inputs: DiffInputs, target: str) -> str:
    """Verify the base, write the tuned weights, and verify every written tensor; return a summary line."""
    raw = read_weights(inputs.folders["raw"])
    diff = exact_diff.read_diff(inputs.folders["diff"])
    exact_diff.check_base(diff, raw, inputs.folders["raw"])
    specs = [Spec(name, entry.dtype, entry.shape) for name, entry in diff.entries.items()]
    hashes = {name: entry.blake3 for name, entry in diff.entries.items()}
    with new_folder(target, sum(spec.nbytes for spec in specs), inputs.identity()) as folder:
        copy_small_files(inputs, folder)
        write_shards(folder, specs, lambda spec: exact_diff.decode(diff, spec.name, raw), inputs.limit, expected=hashes)
        for tensor in mismatched_tensors(folder, hashes):
            exact_diff.check_payload(diff, tensor.name, raw)
            raise read_back_error(tensor)
        write_run_record(folder, f"{SCRIPT} recover", inputs.options, inputs.folders)
    return f"{target}: {len(specs)} tensors, every bit as in the tuned model (weights {diff.tuned[:16]})"


def recover_additive(inputs: DiffInputs, target: str, dtype: str, published: str) -> str:
    """Write raw + diff in `dtype` (F16 or F32); return a summary line. published: see `check_base`."""
    raw, source = read_weights(inputs.folders["raw"]), inputs.folders["diff"]
    stored = complete_weights(source)
    diff = additive_diff.matching_tensors(stored, raw, inputs.folders["raw"])
    known = additive_diff.check_base(source, stored, raw, inputs.folders["raw"], published)
    with new_folder(target, stored_bytes(diff, dtype), inputs.identity()) as folder:
        copy_small_files(inputs, folder)
        weights = additive_diff.recover(folder, diff, raw, dtype, inputs.limit)
        same = additive_diff.check_recovered(source, weights, dtype)
        write_run_record(folder, f"{SCRIPT} recover", inputs.options, inputs.folders)
    by = f"base verified by {known}" if known else "base not verified, because the diff does not identify it"
    end = "equal to the weights recorded by the diff's author" if same else "last bits may differ from the tuned model"
    return f"{target}: {len(diff)} tensors in {TORCH_NAME[dtype]} from an additive diff; {by}; {end}"


def copy_small_files(inputs: DiffInputs, folder: Path) -> None:
    """Copy configuration, tokenizer and template from the diff, or from the base if the diff has no tokenizer."""
    try:
        check_tokenizer(inputs.folders["diff"])
    except FileNotFoundError:
        copy_files(inputs.folders["raw"], folder, SMALL_FILES)
    copy_files(inputs.folders["diff"], folder, SMALL_FILES)
