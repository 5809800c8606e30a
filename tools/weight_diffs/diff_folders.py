"""Write diff folders, and recover tuned models from their base and a diff."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from adapter_checks.base_fit import read_adapter_for_base
from checkpoint_io import resume_journal
from checkpoint_io.checkpoint_folders import (
    existing_folder,
    new_folder,
    write_json,
    write_run_record,
)
from checkpoint_io.small_files import check_tokenizer, copy_small_files, has_tokenizer
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import (
    DIFF_FILES,
    DIFF_RECORD,
    TORCH_NAME,
    Spec,
    Tensor,
    check_complete,
    fingerprint,
    has_weights,
    read_weights,
    tensor_hashes,
)
from checkpoint_seals.seal_check import verify_seal
from lora_merging import adapter_updates
from lora_merging.low_rank import Factors

from weight_diffs import additive_diff, diff_writer, exact_diff
from weight_diffs.rank_search import RankSearch

SCRIPT = "tools/weight_diff.py"


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

    If the folder is an exact diff, only the sizes of weight files are verified, because recovery compares every tensor.
    """
    names = ("raw", role)
    paths = (existing_folder(options[f"path_{name}"], f"--path_{name}", "config.json") for name in names)
    folders = dict(zip(names, paths, strict=True))
    is_exact = has_weights(folders[role], DIFF_FILES)
    for folder in folders.values():
        verify_seal(folder, weights=not is_exact)
    return DiffInputs(folders, options, limit)


def write_exact(inputs: DiffInputs, target: str, adapter: str, low_rank: bool) -> str:
    """Write an exact diff to the new folder target; return a summary line.

    adapter: the LoRA adapter that was merged into the tuned model, or "". low_rank: search for low-rank changes.
    """
    raw, tuned = read_both(inputs)
    if adapter:
        read_adapter_for_base(adapter, inputs.folders["raw"])
    lora = adapter_updates.read_adapter(existing_folder(adapter, "--adapter")) if adapter else None
    search = RankSearch()

    def find_factors(tensor: Tensor, base: Tensor) -> Factors | None:
        update = lora.updates.get(tensor.name) if lora else None
        if update is not None and update.product_shape() == tensor.shape == base.shape:
            return adapter_updates.read_factors(update, base)
        return search.find(tensor, base) if low_rank else None

    run = inputs.identity(*([lora.folder] if lora else []))
    with new_folder(target, 0, run) as folder:  # the compressed size is not known in advance
        copy_small_files([inputs.folders["tuned"]], folder)
        low_rank_count = diff_writer.write_diff(folder, tuned, raw, find_factors, inputs.limit)
        write_run_record(folder, f"{SCRIPT} make_diff", inputs.options, inputs.folders)
        size = sum(file.stat().st_size for file in folder.glob("diff*"))
    note = f", {low_rank_count} matrices as a change of low rank" if low_rank_count else ""
    return f"{target}: exact diff, {size / 1e6:.2f} MB, {size / total_bytes(tuned):.1%} of the tuned weights{note}"


def write_additive(inputs: DiffInputs, target: str, dtype: str) -> str:
    """Write an additive diff in `dtype` (F16 or F32) to the new folder target; return a summary line."""
    raw, tuned = read_both(inputs)
    pairs = additive_diff.matching_tensors(tuned, raw, inputs.folders["raw"])
    size = total_bytes(pairs, dtype)
    with new_folder(target, size, inputs.identity()) as folder:
        copy_small_files([inputs.folders["tuned"]], folder)
        additive_diff.write_combined(folder, pairs, raw, np.subtract, dtype, inputs.limit)
        base = fingerprint(raw.values(), tensor_hashes(raw.values(), "hashing the base"))
        write_json(folder / DIFF_RECORD, {"format": additive_diff.FORMAT, "base": base})
        write_run_record(folder, f"{SCRIPT} make_diff", inputs.options, inputs.folders)
    share = size / total_bytes(pairs)
    return f"{target}: additive diff, {size / 1e6:.2f} MB, {share:.1%} of the tuned weights; recovery is not bit-exact"


def read_both(inputs: DiffInputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the base and of the tuned model; raises FileNotFoundError or ValueError if incomplete."""
    raw, tuned = inputs.folders["raw"], inputs.folders["tuned"]
    check_tokenizer(tuned)
    weights = read_weights(raw), read_weights(tuned)
    check_complete(raw, weights[0])
    check_complete(tuned, weights[1])
    return weights


def total_bytes(tensors: Mapping[str, Tensor], dtype: str = "") -> int:
    """Return the bytes of all tensors, stored in `dtype` if given."""
    return sum(Spec(name, dtype or tensor.dtype, tensor.shape).nbytes for name, tensor in tensors.items())


def recover_exact(inputs: DiffInputs, target: str) -> str:
    """Verify the base, write the tuned weights, and verify every written tensor; return a summary line."""
    raw = read_weights(inputs.folders["raw"])
    diff = exact_diff.read_diff(inputs.folders["diff"])
    exact_diff.check_base(diff, raw, inputs.folders["raw"])
    specs = [entry.spec(name) for name, entry in diff.entries.items()]
    hashes = {name: entry.blake3 for name, entry in diff.entries.items()}
    with new_folder(target, sum(spec.nbytes for spec in specs), inputs.identity()) as folder:
        copy_small_files(small_file_sources(inputs), folder)
        write_shards(folder, specs, lambda spec: exact_diff.decode(diff, spec.name, raw), inputs.limit, expected=hashes)
        files = ", ".join(dict.fromkeys(str(payload.file) for payload in diff.payloads.values()))
        verify_written(folder, hashes, f"download {files} again, or check the disk")
        write_run_record(folder, f"{SCRIPT} recover", inputs.options, inputs.folders)
    return f"{target}: {len(specs)} tensors, every bit as in the tuned model (weights {diff.tuned[:16]})"


def recover_additive(inputs: DiffInputs, target: str, dtype: str, published: str) -> str:
    """Write raw + diff in `dtype` (F16 or F32); return a summary line. published: see
    `additive_diff.check_base`."""
    raw, source = read_weights(inputs.folders["raw"]), inputs.folders["diff"]
    stored = read_weights(source)
    check_complete(source, stored)
    diff = additive_diff.matching_tensors(stored, raw, inputs.folders["raw"])
    verified_by = additive_diff.check_base(source, stored, raw, inputs.folders["raw"], published)
    with new_folder(target, total_bytes(diff, dtype), inputs.identity()) as folder:
        copy_small_files(small_file_sources(inputs), folder)
        hashes = additive_diff.write_combined(folder, diff, raw, np.add, dtype, inputs.limit)
        verify_written(folder, hashes)
        write_run_record(folder, f"{SCRIPT} recover", inputs.options, inputs.folders)
    note = (
        f"base verified by {verified_by}" if verified_by else "base not verified, because the diff does not identify it"
    )
    return f"{target}: {len(diff)} tensors in {TORCH_NAME[dtype]} from an additive diff, not bit-exact; {note}"


def small_file_sources(inputs: DiffInputs) -> list[Path]:
    """Return the folders of the recovered model's small files: the diff, and the base if the diff has no tokenizer."""
    raw, diff = inputs.folders["raw"], inputs.folders["diff"]
    return [diff] if has_tokenizer(diff) else [raw, diff]
