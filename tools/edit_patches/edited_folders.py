"""Edited checkpoints: apply patches to a base, take them out again, exactly to the bit.

An edited checkpoint is an ordinary checkpoint folder that also has

| folder | content |
| --- | --- |
| `patches/NNN-name/` | a copy of each patch (patch_files.py), in the order in which they were applied |
| `patches/undo/` | an exact diff (weight_diffs/exact_diff.py) from the edited matrices back to those of the base |

The edited matrices are base + the products of all patches, added in order in float32 and rounded once (lora_merging).
They depend only on the base and the list of patches. To add or remove a patch, the base's matrices are restored from
`undo` and compared with their recorded hashes, and the other patches are applied again.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from adapter_checks.base_fit import read_adapter_for_base
from checkpoint_io.checkpoint_folders import existing_folder, read_json, write_json, write_run_record
from checkpoint_io.small_files import check_tokenizer, copy_small_files
from checkpoint_io.tensor_files import parse_size, verify_written, write_shards
from checkpoint_io.tensors import Spec, Tensor, check_complete, read_weights, tensor_hash
from checkpoint_seals.seal_check import verify_seal
from checkpoint_seals.seal_writer import parent_entry
from lora_merging.adapter_updates import LoraAdapter, float_values, read_adapter
from lora_merging.lora_merge import merged_chunks, merged_spec
from lora_merging.low_rank import Factors
from partial_folders import resume_journal
from partial_folders.atomic_outputs import fsync_path, new_folder
from weight_diffs.diff_writer import write_diff
from weight_diffs.exact_diff import decode, read_diff

from edit_patches.patch_files import PatchRecord, read_patch

PATCHES, UNDO, BASE = "patches", "undo", "base.json"
SHARD_LIMIT = parse_size("5GB")
Patches = Sequence[tuple[Path, PatchRecord]]  # folders and records in the order of application


@dataclass(frozen=True)
class EditedModel:
    """A checkpoint folder and the patches in it.

    base: fingerprint of the base's weights. patches: folders and records in order, none for a plain checkpoint.
    """

    folder: Path
    base: str
    patches: list[tuple[Path, PatchRecord]]

    def below(self) -> list[str]:
        """Return the fingerprints of the patches, in order."""
        return [record.weights for _, record in self.patches]


def open_model(path: object, option: str) -> EditedModel:
    """Open a plain or an edited checkpoint folder; its seal is verified if there is one.

    Raises FileNotFoundError or ValueError for a folder that is no complete model or has damaged patches.
    """
    folder = existing_folder(path, option, "config.json")
    verify_seal(folder)
    if not (folder / PATCHES).is_dir():
        return EditedModel(folder, parent_entry(folder)["weights"], [])
    base = read_json(folder / PATCHES / BASE).get("weights")
    if not isinstance(base, str):
        raise ValueError(f"{folder / PATCHES / BASE} is damaged; copy the folder again")
    folders = sorted(each for each in (folder / PATCHES).iterdir() if re.fullmatch(r"\d{3}-.+", each.name))
    return EditedModel(folder, base, [read_patch(each, option) for each in folders])


def base_tensors(model: EditedModel) -> dict[str, Tensor]:
    """Return the weights of the base: those of the folder, with the edited matrices restored in memory.

    Raises ValueError if a restored matrix does not have its recorded hash.
    """
    weights = read_weights(model.folder)
    check_complete(model.folder, weights)
    if not model.patches:
        return weights
    undo = read_diff(model.folder / PATCHES / UNDO)
    restored = dict[str, Tensor]()
    for name, entry in undo.entries.items():
        bits = np.concatenate(list(decode(undo, name, weights)))
        restored[name] = Tensor(name, entry.dtype, entry.shape, model.folder, bits)
        if tensor_hash(restored[name]) != entry.blake3:
            raise ValueError(
                f"{model.folder}: tensor {name} was changed since the patches were applied, so they cannot be taken "
                "out; use an intact copy of the folder"
            )
    return weights | restored


def check_patch(model: EditedModel, patch: Path, record: PatchRecord) -> None:
    """Raise ValueError unless a patch belongs to the base of a model and the patches below it are in the model."""
    if record.base != model.base:
        raise ValueError(
            f"{patch} belongs to the model with the weights {record.base[:16]}, not to {model.folder} "
            f"({model.base[:16]}); use the base that the patch was made for"
        )
    if record.weights in model.below():
        raise ValueError(f"{patch} is already in {model.folder}; nothing to apply")
    names = {existing.name for _, existing in model.patches}
    if record.name in names:
        raise ValueError(f"{model.folder} has another patch named {record.name}; choose another name")
    missing = [weights for weights in record.below if weights not in model.below()]
    if missing:
        raise ValueError(
            f"{patch} was made on top of a patch with the weights {missing[0][:16]}, which {model.folder} does not "
            "have; apply that one first"
        )


def write_model(
    model: EditedModel,
    patches: Patches,
    target: str,
    script: str,
    options: Mapping[str, object],
) -> None:
    """Write the base of a model with the given patches to the new folder target.

    Without patches the weights equal the base's to the bit. An interrupted run resumes with the same command.
    """
    base = base_tensors(model)
    adapters = [adapter_of(folder, model.folder) for folder, _ in patches]
    edited = {name for adapter in adapters for name in adapter.updates}
    if unknown := sorted(edited - base.keys()):
        raise ValueError(f"{model.folder} has no tensor {unknown[0]}, which a patch changes; use the patch's base")
    specs = [merged_spec(tensor, adapters, None) for tensor in base.values()]
    inputs = [model.folder, *(folder for folder, _ in patches)]
    check_tokenizer(model.folder)
    run = resume_journal.run_identity(script, options, inputs)
    with new_folder(target, sum(spec.nbytes for spec in specs), run, inputs) as folder:
        copy_small_files([model.folder], folder)
        hashes = write_shards(folder, specs, lambda spec: chunks_of(spec, base, adapters), SHARD_LIMIT)
        verify_written(folder, hashes)
        if patches:
            write_patches(folder, model.base, patches, {name: base[name] for name in sorted(edited)}, adapters)
        write_run_record(folder, script, options, {"base": model.folder})


def adapter_of(patch: Path, base: Path) -> LoraAdapter:
    """Read a patch's factors; ValueError if they do not fit the base."""
    read_adapter_for_base(patch, base)
    return read_adapter(patch)


def chunks_of(spec: Spec, base: Mapping[str, Tensor], adapters: Sequence[LoraAdapter]) -> Iterator[np.ndarray]:
    """Yield a tensor of the result as bit patterns."""
    yield from merged_chunks(spec, base[spec.name], adapters)


def write_patches(
    folder: Path, base: str, patches: Patches, originals: Mapping[str, Tensor],
    adapters: Sequence[LoraAdapter],
) -> None:  # fmt: skip
    """Write the folder `patches` of an edited model: copies of the patches, and the way back to the base.

    originals: the base's tensors that the patches change.
    """
    shutil.rmtree(folder / PATCHES, ignore_errors=True)  # of an interrupted run
    undo = folder / PATCHES / UNDO
    undo.mkdir(parents=True)
    edited = read_weights(folder)

    def back(tensor: Tensor, _: Tensor) -> Factors:
        """Return the negative sum of the patches' products; only rounding remains to be stored."""
        updates = [adapter.updates[tensor.name] for adapter in adapters if tensor.name in adapter.updates]
        left = [float_values(each.left) * np.float32(-each.scaling) for each in updates if each.left is not None]
        right = [float_values(each.right) for each in updates if each.right is not None]
        return Factors(np.concatenate(left, 1), np.concatenate(right, 0))

    write_diff(undo, originals, {name: edited[name] for name in originals}, back, SHARD_LIMIT)
    for number, (patch, record) in enumerate(patches, 1):
        shutil.copytree(patch, folder / PATCHES / f"{number:03d}-{record.name}")
    write_json(folder / PATCHES / BASE, {"weights": base})
    for path in (folder / PATCHES).rglob("*"):
        fsync_path(path)


def apply_patch(model: EditedModel, patch: Path, record: PatchRecord, target: str, script: str,
                options: Mapping[str, object]) -> str:  # fmt: skip
    """Write a model with one more patch to the new folder target; return a summary line."""
    check_patch(model, patch, record)
    write_model(model, [*model.patches, (patch, record)], target, script, options)
    return f"{target}: {len(model.patches) + 1} patches, the last is {record.name} ({record.method})"


def remove_patch(model: EditedModel, name: str, target: str, script: str, options: Mapping[str, object]) -> str:
    """Write a model without one of its patches to the new folder target; return a summary line.

    name: the patch's name, or its folder's name in `patches`.
    """
    kept = [each for each in model.patches if name not in (each[1].name, each[0].name)]
    if len(kept) == len(model.patches):
        names = ", ".join(record.name for _, record in model.patches) or "none"
        raise ValueError(f"{model.folder} has no patch {name}; its patches: {names}")
    removed = next(record for _, record in model.patches if record not in [each for _, each in kept])
    write_model(model, kept, target, script, options)
    above = [record.name for _, record in kept if removed.weights in record.below]
    note = f"; {', '.join(above)} had been made on top of it" if above else ""
    rest = f"{len(kept)} patches left" if kept else f"no patch left, the weights are the base's ({model.base[:16]})"
    return f"{target}: without {removed.name}, {rest}{note}"
