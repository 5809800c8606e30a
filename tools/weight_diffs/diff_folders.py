"""Write diff folders, and recover tuned models from their base and a diff."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from adapter_checks.base_fit import read_adapter_for_base
from checkpoint_io import checkpoint_folders, tensors
from checkpoint_io.checkpoint_folders import existing_folder
from checkpoint_io.small_files import check_tokenizer, copy_small_files, has_tokenizer
from checkpoint_io.tensor_files import verify_written, write_shards
from checkpoint_io.tensors import DIFF_FILES, Spec, Tensor, check_complete, is_buffer, read_weights
from checkpoint_seals.seal_check import verify_seal
from lora_merging import adapter_updates
from lora_merging.low_rank import Factors
from model_folders.diff_recognition import DIFF_RECORD, is_diff, refuse_diff
from partial_folders import resume_journal
from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path

from weight_diffs import additive_diff, diff_writer, exact_diff, interpolation
from weight_diffs.rank_search import RankSearch
from weight_diffs.recorded_files import record_files, verify_files

SCRIPT = "tools/weight_diff.py"


@dataclass(frozen=True)
class DiffInputs:
    """The two input folders by role ("raw", and "tuned" or "diff"), and the command's options."""

    folders: dict[str, Path]
    options: Mapping[str, object]
    shard_limit: int  # the largest size of a shard in bytes

    @contextmanager
    def output_folder(
        self, target: str, needed: int, *adapters: Path, repository: str = ""
    ) -> Iterator[tuple[Path, str]]:
        """Yield the new folder `target`, and text about its template for the summary; write run.json at the end.

        The folder has configuration, tokenizer and template from the second input folder and, if that has no tokenizer,
        also from the base. needed: bytes that will be written. adapters: further input folders. repository: name of
        the published diff in the second folder, "" if unknown; run.json records it.
        """
        base, other = self.folders.values()
        command = "recover" if "diff" in self.folders else "interpolate" if "weight" in self.options else "make_diff"
        inputs = [base, other, *adapters]
        run = resume_journal.run_identity(SCRIPT, self.options, inputs)
        with new_folder(target, needed, run, inputs) as folder:
            sources = [other] if has_tokenizer(other) else [base, other]
            yield folder, copy_small_files(sources, folder, repository)
            options = dict(self.options) | ({"published": repository} if repository else {})
            checkpoint_folders.write_run_record(folder, f"{SCRIPT} {command}", options, self.folders)
            if command == "make_diff":
                record_files(folder)


def open_inputs(options: Mapping[str, object], shard_limit: int, role: str) -> DiffInputs:
    """Open the folders given by --path_raw and --path_<role>, and verify their seals if present.

    If the second folder is an exact diff, only the sizes of the weight files of both folders are verified, because
    recovery compares every tensor. Raises ValueError if the base is a diff.
    """
    folders = {
        name: existing_folder(options[f"path_{name}"], f"--path_{name}", "config.json") for name in ("raw", role)
    }
    target = "path_tuned" if role == "diff" else "path_interpolated" if "weight" in options else "path_diff"
    folder_path(str(options[target]), folders.values())
    if is_diff(folders["raw"]) and role == "diff" and not is_diff(folders[role]):
        raise ValueError(
            f"--path_raw {folders['raw']} is a diff and --path_diff {folders[role]} is not; exchange the two options"
        )
    refuse_diff(folders["raw"])
    if role == "diff":
        verify_files(folders[role])
    is_exact = tensors.has_weights(folders[role], DIFF_FILES)
    for folder in folders.values():
        verify_seal(folder, weights=not is_exact)
    return DiffInputs(folders, options, shard_limit)


def write_exact(inputs: DiffInputs, target: str, adapter: str, low_rank: bool) -> str:
    """Write an exact diff to the new folder target; return a summary line.

    adapter: the LoRA adapter that was merged into the tuned model, or "". low_rank: search for low-rank changes.
    """
    base, tuned = read_both(inputs)
    lora = None
    if adapter:
        folder = existing_folder(adapter, "--adapter")
        read_adapter_for_base(folder, inputs.folders["raw"])
        lora = adapter_updates.read_adapter(folder)
    search = RankSearch()

    def find_factors(tensor: Tensor, base: Tensor) -> Factors | None:
        update = lora.updates.get(tensor.name) if lora else None
        if update is not None and update.product_shape() == tensor.shape == base.shape:
            factors = adapter_updates.read_factors(update, base)
            return factors if factors is not None and diff_writer.saves_bytes(factors, tensor, base) else None
        return search.find(tensor, base) if low_rank else None

    # `needed` is 0, because the compressed size is not known in advance.
    with inputs.output_folder(target, 0, *([lora.folder] if lora else [])) as (folder, _):
        low_rank_count = diff_writer.write_diff(folder, tuned, base, find_factors, inputs.shard_limit)
    size = exact_diff.stored_bytes(Path(target))
    note = f", {low_rank_count} matrices as low-rank changes" if low_rank_count else ""
    return f"{target}: exact diff, {size / 1e6:.2f} MB, {size / total_bytes(tuned):.1%} of the tuned weights{note}"


def write_additive(inputs: DiffInputs, target: str, dtype: str) -> str:
    """Write an additive diff in `dtype` (F16 or F32) to the new folder target; return a summary line."""
    base, tuned = read_both(inputs)
    subtracted = additive_diff.with_tied_output(inputs.folders["raw"], base)
    trained = {name: tensor for name, tensor in tuned.items() if not is_buffer(tensor)}
    stored = additive_diff.matching_tensors(trained, subtracted, inputs.folders["raw"])
    size = total_bytes(stored, dtype)
    with inputs.output_folder(target, size) as (folder, _):
        additive_diff.write_combined(folder, stored, subtracted, np.subtract, dtype, inputs.shard_limit)
        whole, trained_only = additive_diff.base_fingerprints(base, "hashing the base")
        record = {"format": additive_diff.FORMAT, "base": whole, "base_trained": trained_only}
        checkpoint_folders.write_json(folder / DIFF_RECORD, record)
    share = size / total_bytes(stored)
    return f"{target}: additive diff, {size / 1e6:.2f} MB, {share:.1%} of the tuned weights; recovery is not bit-exact"


def interpolate_models(inputs: DiffInputs, target: str, weight: float) -> str:
    """Write (1 - weight) * base + weight * tuned to the new folder target; return a summary line."""
    base, tuned = read_both(inputs)
    with inputs.output_folder(target, total_bytes(tuned)) as (folder, template):
        hashes = interpolation.write_interpolated(folder, tuned, base, weight, inputs.shard_limit)
        verify_written(folder, hashes)
    return f"{target}: {len(tuned)} tensors, {1 - weight:.4g} x base + {weight:.4g} x tuned model{template}"


def read_both(inputs: DiffInputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of base and tuned model; FileNotFoundError or ValueError if one is incomplete or a diff."""
    for folder in inputs.folders.values():
        if tensors.has_weights(folder, DIFF_FILES):
            raise ValueError(
                f"{folder} is an exact diff, not a model; recover the model: python {SCRIPT} recover --path_raw BASE "
                f"--path_diff {folder} --path_tuned NEW"
            )
    check_tokenizer(inputs.folders["tuned"])
    base, tuned = (read_weights(folder) for folder in inputs.folders.values())
    check_complete(inputs.folders["raw"], base)
    check_complete(inputs.folders["tuned"], tuned)
    return base, tuned


def total_bytes(weights: Mapping[str, Tensor], dtype: str = "") -> int:
    """Return the bytes of all tensors, stored in `dtype` if given."""
    return sum(Spec(name, dtype or tensor.dtype, tensor.shape).nbytes for name, tensor in weights.items())


def recover_exact(inputs: DiffInputs, target: str) -> str:
    """Verify the base, write the tuned weights, and verify every written tensor; return a summary line."""
    base = read_weights(inputs.folders["raw"])
    diff = exact_diff.read_diff(inputs.folders["diff"])
    exact_diff.check_base(diff, base, inputs.folders["raw"])
    specs = [entry.spec(name) for name, entry in diff.entries.items()]
    hashes = {name: entry.blake3 for name, entry in diff.entries.items()}
    with inputs.output_folder(target, sum(spec.nbytes for spec in specs)) as (folder, template):
        write_shards(folder, specs, lambda spec: exact_diff.decode(diff, spec.name, base), inputs.shard_limit, hashes)
        files = ", ".join(dict.fromkeys(str(payload.file) for payload in diff.payloads.values()))
        verify_written(folder, hashes, f"download {files} again, or check the disk")
    return f"{target}: {len(specs)} tensors, bit-identical to the tuned model (weights {diff.tuned[:16]}){template}"


def recover_additive(inputs: DiffInputs, target: str, dtype: str, published: str) -> str:
    """Write base + diff in `dtype` (F16 or F32); return a summary line.

    published: as for `additive_diff.check_base`.
    """
    base, diff = (read_weights(folder) for folder in inputs.folders.values())
    path_base, path_diff = inputs.folders.values()
    check_complete(path_base, base)
    check_complete(path_diff, diff, is_diff=True)
    added = additive_diff.with_tied_output(path_base, base)
    matching = additive_diff.matching_tensors(diff, added, path_base)
    criterion, repository, added_rows = additive_diff.check_base(path_diff, diff, base, path_base, published)
    needed = total_bytes(matching, dtype)
    with inputs.output_folder(target, needed, repository=repository) as (folder, template):
        limit = inputs.shard_limit
        hashes = additive_diff.write_combined(folder, matching, added, np.add, dtype, limit, added_rows)
        verify_written(folder, hashes)
    precision = f"{tensors.TORCH_NAME[dtype]} from an additive diff, not bit-exact"
    return f"{target}: {len(matching)} tensors in {precision}; {criterion}{template}"
