"""Resume from a DeepSpeed checkpoint with another number of ranks, by converting it to a universal checkpoint.

A ZeRO checkpoint has one part of the optimizer state for each rank, so only the same number of ranks can load it. For
another number, the checkpoint is converted in its folder, and the converted files are removed after they are loaded.
The ZeRO stage must be the same. Only this file relies on DeepSpeed's internals:

| name | reason |
| --- | --- |
| `zero_pp_rank_N_mp_rank_…_optim_states.pt` | the number of ranks that wrote a checkpoint is only in the file names |
| `deepspeed.checkpoint.ds_to_universal`, `latest_universal`, `load_universal` | the documented conversion |
| `optimizer.param_groups` and `state` | see RepairUniversalState |
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from corpus_files.corpus import check_free_space
from rank_group.ranks import wait_for_ranks
from transformers import TrainerCallback

from pretraining.pretraining_arguments import PretrainingArguments

LATEST = "latest_universal"  # the file from which DeepSpeed reads the name of the universal checkpoint
SPACE_FACTOR = 2.5  # disk space of a conversion / size of the checkpoint; measured: 68 million parameters, float32


def count_writer_ranks(checkpoint: Path) -> int:
    """Return the number of ranks that wrote the optimizer state; 0 if the run did not use DeepSpeed.

    Raises ValueError if the file of a rank is missing.
    """
    if not (checkpoint / "latest").is_file():
        return 0
    folder = checkpoint / (checkpoint / "latest").read_text().strip()
    names = [re.search(r"zero_pp_rank_(\d+)_mp_rank_", file.name) for file in folder.glob("*_optim_states.pt")]
    found = {int(name[1]) for name in names if name}
    if missing := set(range(max(found, default=-1) + 1)) - found:
        raise ValueError(f"{folder} lacks the optimizer state of rank {min(missing)}; resume from another checkpoint")
    return len(found)


def convert(checkpoint: Path) -> None:
    """Write a universal checkpoint into the folder of a checkpoint, `latest_universal` last; one rank calls it.

    The converter runs in a separate process, since it does not release its memory, and with relative paths, since it
    uses the path of the folder as a regular expression. Raises ValueError if it fails or the disk has too little space.
    """
    remove_converted(checkpoint)
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    check_free_space(checkpoint / LATEST, int(SPACE_FACTOR * size), "resume with the same number of ranks")
    tag = (checkpoint / "latest").read_text().strip()
    partial = _partial(checkpoint)
    partial.mkdir()
    folder = partial / f"{tag}_universal"
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state", "--input_folder", tag,
        "--output_folder", f"{partial.name}/{folder.name}", "--num_extract_workers", "1", "--num_merge_workers", "1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=checkpoint, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ValueError(
            f"{checkpoint} could not be converted for another number of ranks ({reason}); resume with the same number"
        )
    _remove_shard_of_rank_0(folder / "zero/optimizer_state.pt")
    folder.replace(checkpoint / folder.name)
    (partial / LATEST).replace(checkpoint / LATEST)
    partial.rmdir()


def _partial(checkpoint: Path) -> Path:
    return checkpoint / "universal.partial"


def _optimizer_state(file: Path) -> dict[str, Any]:
    """Read the part of a converted optimizer state that is not stored by parameter."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum]):
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)


def _remove_shard_of_rank_0(file: Path) -> None:
    """Remove rank 0's part of the optimizer state, which stage 3 also writes into the file that every rank reads."""
    state = _optimizer_state(file)
    inner = state.get("optimizer_state_dict")
    if inner is None:  # stages 1 and 2
        return
    inner["state"] = {key: {"step": values["step"]} for key, values in inner["state"].items()}
    state.pop("fp32_flat_groups", None)
    torch.save(state, file.with_suffix(".partial"))
    file.with_suffix(".partial").replace(file)


def remove_converted(checkpoint: Path) -> None:
    """Remove the files that `convert` wrote, even if they are incomplete."""
    (checkpoint / LATEST).unlink(missing_ok=True)
    for folder in (_partial(checkpoint), *checkpoint.glob("global_step*_universal")):
        shutil.rmtree(folder, ignore_errors=True)


class RepairUniversalState(TrainerCallback):
    """Corrects the optimizer state that DeepSpeed 0.19 loads from a universal checkpoint, then removes that checkpoint.

    Under stage 3 (runtime/zero/stage3.py, load_hp_checkpoint_state_from_checkpoint_dir_stage3) all parts of the
    optimizer share one step tensor, which each of them increments, and all groups get the weight decay of the first
    group. The step tensor is also on the CPU, while AdamW's fused kernel needs it on the device.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **more: Any) -> None:
        while hasattr(optimizer, "optimizer"):  # accelerate and DeepSpeed wrap the optimizer of torch
            optimizer = optimizer.optimizer
        folder = self.checkpoint / (self.checkpoint / LATEST).read_text().strip()
        saved = _optimizer_state(folder / "zero/optimizer_state.pt")
        for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in saved_group.items() if key != "params"})
        on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        for parameter, values in optimizer.state.items():
            if torch.is_tensor(values.get("step")):
                values["step"] = values["step"].to(parameter.device if on_device else "cpu", copy=True)
        wait_for_ranks()
        if args.process_index == 0:
            remove_converted(self.checkpoint)


def prepare(args: PretrainingArguments, checkpoint: Path) -> list[TrainerCallback]:
    """Convert the checkpoint if another number of ranks wrote it; return the callbacks that Trainer then needs.

    Every rank calls this function before Trainer is created. Raises ValueError if a run with DeepSpeed is resumed
    without DeepSpeed or vice versa, since Trainer would start with a new optimizer state.
    """
    ranks = count_writer_ranks(checkpoint)
    if bool(ranks) != bool(args.deepspeed):
        raise ValueError(
            f"{checkpoint} was written {'with' if ranks else 'without'} --deepspeed; resume it the same way"
        )
    if ranks == (args.world_size if args.deepspeed else 0):
        return []
    if args.process_index == 0:
        convert(checkpoint)
    wait_for_ranks()
    args.hf_deepspeed_config.config.setdefault("checkpoint", {})["load_universal"] = True
    return [RepairUniversalState(checkpoint)]
