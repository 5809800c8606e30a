"""The process group of a run: initialise it before the model is loaded, sum tensors over it, destroy it at the end.

A launcher (torchrun, deepspeed, accelerate launch) passes each rank's number in environment variables. Without a
launcher there is one rank, and the functions here do not wait.
"""

import importlib.util
import os
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
    """Initialise DeepSpeed's process group; does nothing without `deepspeed_config`.

    Call it before creating TrainingArguments: otherwise `zero.Init` in `from_pretrained` partitions the model for one
    rank. Without an accelerator it also sets ACCELERATE_USE_DEEPSPEED, which accelerate then requires. Raises
    ValueError if the ranks cannot connect, or were not started by a launcher.
    """
    if not deepspeed_config:
        return
    import deepspeed

    from rank_group import extension_locks

    extension_locks.install()
    is_on_cpu = not torch.accelerator.is_available()
    if is_on_cpu:  # DeepSpeed would compile this operation for minutes; only its inference uses it
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "LOCAL_RANK" not in os.environ:
        if importlib.util.find_spec("mpi4py") is None:  # else DeepSpeed finds the ranks of mpirun
            raise ValueError(
                "--deepspeed needs a launcher, also for one rank: deepspeed --num_gpus 1 SCRIPT …, or torchrun"
            )
        return
    try:
        deepspeed.init_distributed()
    except distributed.DistNetworkError:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ValueError(f"ranks cannot connect to {address}; if another run uses it, give --master_port N") from None
    if is_on_cpu:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"


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
