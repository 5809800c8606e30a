"""A patch: the low-rank updates of some edits as an adapter folder, with the edits and the base that they belong to.

| file | content |
| --- | --- |
| `adapter_config.json`, `adapter_model.safetensors` | a LoRA adapter in PEFT's layout with the scaling 1, in float32 |
| `edits.jsonl` | the edits: prompt, subject, target_new, and the answers before and after where they were measured |
| `patch.json` | format, method and options, fingerprint of the base's weights, fingerprints of the patches below |

PEFT and `weight_diff.py merge` therefore read a patch like any other adapter.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_io.checkpoint_folders import existing_folder, read_json, write_json
from checkpoint_io.tensors import ADAPTER_FILES, Spec, check_finite, fingerprint, read_weights, tensor_hashes
from json_rows.row_files import iterate_objects
from knowledge_editing.matrix_updates import LowRank

FORMAT = "knowledge-patch-1"
RECORD, EDITS = "patch.json", "edits.jsonl"


@dataclass(frozen=True)
class PatchRecord:
    """The content of patch.json, except the format.

    base: fingerprint of the base's weights. below: fingerprints of the patches that the base had when this one was
    made, in order. layers: the edited layers. weights: fingerprint of the patch's own factors.
    """

    name: str
    method: str
    options: dict[str, Any]
    layers: list[int]
    base: str
    below: list[str]
    weights: str


def write_patch_files(
    folder: Path,
    record: Mapping[str, Any],
    updates: Mapping[str, LowRank],
    edits: Sequence[Mapping[str, Any]],
    base: Path,
) -> PatchRecord:
    """Write the files of a patch into an existing folder; return its record.

    record: the fields of PatchRecord except `weights`. updates: tensor name -> update, not empty. base: the checkpoint
    folder, for its name.
    """
    from safetensors.numpy import save

    tensors, ranks = dict[str, np.ndarray](), dict[str, int]()
    for name, update in updates.items():
        module = name.removesuffix(".weight")
        ranks[module] = update.right.shape[0]
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(update.right, np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(update.left, np.float32)
    largest = max(ranks.values())
    different = {module: rank for module, rank in ranks.items() if rank != largest}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "inference_mode": True,
        "r": largest, "lora_alpha": largest, "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(ranks),
        "rank_pattern": different, "alpha_pattern": different,
    }  # fmt: skip
    write_json(folder / "adapter_config.json", config)
    (folder / ADAPTER_FILES[0]).write_bytes(save(tensors, {"format": "pt"}))
    lines = (json.dumps(edit, ensure_ascii=False) + "\n" for edit in edits)
    (folder / EDITS).write_text("".join(lines), encoding="utf-8")
    complete = PatchRecord(**record, weights=patch_fingerprint(folder))
    write_json(folder / RECORD, {"format": FORMAT, **asdict(complete)})
    return complete


def patch_fingerprint(folder: Path) -> str:
    """Return the fingerprint of a patch's factors; ValueError if one of them is not finite."""
    weights = read_weights(folder, ADAPTER_FILES)
    for tensor in weights.values():
        check_finite(tensor.read(), Spec(tensor.name, tensor.dtype, tensor.shape), "make the patch again")
    return fingerprint(weights.values(), tensor_hashes(weights.values(), f"hashing {folder.name}"))


def read_patch(path: object, option: str) -> tuple[Path, PatchRecord]:
    """Return the folder and the record of a patch; ValueError if it is damaged or has another format."""
    folder = existing_folder(path, option, RECORD)
    content = read_json(folder / RECORD)
    if content.get("format") != FORMAT:
        raise ValueError(f"{folder / RECORD} has the format {content.get('format')!r}, not {FORMAT}; make it again")
    try:
        record = PatchRecord(**{name: content[name] for name in PatchRecord.__dataclass_fields__})
        valid = all(type(getattr(record, name)) is str for name in ("name", "method", "base", "weights"))
        valid = valid and is_name(record.name) and all(type(each) is str for each in record.below)
    except (KeyError, TypeError):
        valid = False
    if not valid or patch_fingerprint(folder) != record.weights:
        raise ValueError(f"{folder} is damaged: {RECORD} does not match its factors; copy the patch again")
    return folder, record


def is_name(name: str) -> bool:
    """Return whether a text may be the name of a patch: letters, digits, and ._- inside."""
    return bool(re.fullmatch(r"[^\W_](?:[\w.-]{0,98}\w)?", name))


def read_patch_edits(folder: Path) -> list[dict[str, Any]]:
    """Return the edits of a patch, one dictionary per edit."""
    return [row for _, row in iterate_objects(folder / EDITS)]
