"""The ranks of a run: join before the model is loaded, sum tensors during training, leave after the result is saved.

A launcher (torchrun, deepspeed, accelerate launch) names the ranks in environment variables. Without a launcher there
is one rank, and no function here waits for another.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def launched_ranks() -> int:
    """How many ranks the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is rank 0, which prints and writes for all ranks."""
    return int(os.environ.get("RANK", "0")) == 0


def join_ranks(deepspeed_config: Any) -> None:
    """Initialise DeepSpeed's process group, unless there is no launcher or no DeepSpeed.

    This must precede TrainingArguments: otherwise `zero.Init` in `from_pretrained` partitions the model for one rank,
    and without a GPU accelerate uses DeepSpeed only if ACCELERATE_USE_DEEPSPEED is set. Raises ValueError if the ranks
    cannot connect.
    """
    if not deepspeed_config or "LOCAL_RANK" not in os.environ:
        return
    import deepspeed

    try:
        deepspeed.init_distributed()
    except distributed.DistNetworkError:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ValueError(f"ranks cannot connect to {address}; if another run uses it, give --master_port N") from None
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        _unlink_shared_memory()


def _unlink_shared_memory() -> None:
    """Remove the names of DeepSpeed's CPU buffers in /dev/shm, about 60 MB a rank, which would remain after the run.

    After the barrier all ranks have opened the buffers, and the names are not needed any more.
    """
    distributed.barrier()
    port, rank = os.environ.get("MASTER_PORT"), os.environ.get("RANK")
    for file in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_{rank}"):
        file.unlink(missing_ok=True)


def wait_for_ranks() -> None:
    """Return when all ranks have called this function."""
    if distributed.is_initialized():
        distributed.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of all ranks' tensors, in place; all ranks call it together."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def leave_ranks() -> None:
    """Wait for all ranks and destroy the process group; a rank that exits earlier may abort one that still saves."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
