"""Create and read checkpoint folders with changed weights, for the tests of diffs."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def variant(source: Path, target: Path, state: dict[str, torch.Tensor]) -> Path:
    """Copy a checkpoint folder with other weights."""
    shutil.copytree(source, target)
    save_file(
        {name: value.contiguous() for name, value in state.items()}, target / "model.safetensors", {"format": "pt"}
    )
    return target


def nudged(state: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: value * (1 + 1e-3 * torch.randn_like(value)) for name, value in state.items()}


def bytes_of(folder: Path) -> dict[str, tuple[torch.dtype, list[int]]]:
    state = load_file(folder / "model.safetensors")
    return {name: (value.dtype, value.reshape(-1).view(torch.uint8).tolist()) for name, value in state.items()}


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "partial" in path.name]


def additive(folder: Path, raw: Path, tuned: Path) -> Path:
    """Write an additive diff like the published script: a checkpoint folder of differences, without diff.json."""
    ours, theirs = (load_file(model / "model.safetensors") for model in (tuned, raw))
    return variant(tuned, folder, {name: value - theirs[name] for name, value in ours.items()})
