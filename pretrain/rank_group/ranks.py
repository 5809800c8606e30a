"""The process group of a run: initialise it before the model is loaded, sum tensors over it, destroy it at the end.

A launcher (torchrun, deepspeed, accelerate launch) passes each rank's number in environment variables. Without a
launcher there is one rank, and the functions here do not wait.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def launched_ranks() -> int:
    """Return the number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this process is rank 0, which prints and writes for all ranks."""
    return int(os.environ.get("RANK", "0")) == 0


def join_ranks(deepspeed_config: Any) -> None:
    """Initialise DeepSpeed's process group; does nothing without a launcher or without `deepspeed_config`.

    Call it before creating TrainingArguments: otherwise `zero.Init` in `from_pretrained` partitions the model for one
    rank. Without an accelerator it also sets ACCELERATE_USE_DEEPSPEED, which accelerate then requires. Raises
    ValueError if the ranks cannot connect.
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
    """Unlink DeepSpeed's CPU buffers in /dev/shm, about 60 MB a rank, which would otherwise remain after the run.

    After the barrier all ranks have opened the buffers, so the file names are no longer needed.
    """
    distributed.barrier()
    port, rank = os.environ.get("MASTER_PORT"), os.environ.get("RANK")
    for file in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_{rank}"):
        file.unlink(missing_ok=True)


def wait_for_ranks() -> None:
    """Block until all ranks have called this function."""
    if distributed.is_initialized():
        distributed.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks in place and return it; all ranks must call it."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def leave_ranks() -> None:
    """Wait for all ranks, then destroy the process group; a rank that exits early can abort one that is saving."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
