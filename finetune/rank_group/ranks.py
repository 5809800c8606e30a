"""The process group of a run: initialise it before the model is loaded, sum tensors over it, destroy it at the end.

A launcher (torchrun, deepspeed, accelerate launch) passes each rank's number in environment variables. Without a
launcher there is one rank, and the functions here do not wait.
"""

import importlib.util
import os
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


def launched_ranks() -> int:
    """Return the number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this process is rank 0, which prints and writes for all ranks."""
    return int(os.environ.get("RANK", "0")) == 0


def join_ranks(deepspeed_config: Any, backend: str | None, seconds: float) -> None:
    """Initialise the process group of DeepSpeed, or of ranks without an accelerator; otherwise Trainer initialises it.

    Call it before creating TrainingArguments: otherwise `zero.Init` in `from_pretrained` partitions the model for one
    rank. Without an accelerator, Trainer would ignore --ddp_timeout, and with DeepSpeed accelerate requires
    ACCELERATE_USE_DEEPSPEED, which is set here. deepspeed_config, backend, seconds: values of
    --deepspeed, --ddp_backend and --ddp_timeout. Raises ValueError if the ranks cannot connect, or if --deepspeed or
    --ddp_backend is given without a launcher. (With mpi4py, --deepspeed needs no launcher: DeepSpeed then finds the
    ranks of mpirun.)
    """
    launched, is_on_cpu = "LOCAL_RANK" in os.environ, not torch.accelerator.is_available()
    if backend and not launched:
        raise ValueError("--ddp_backend has no effect on one rank without a launcher; remove it, or use torchrun")
    if deepspeed_config and not launched:
        if importlib.util.find_spec("mpi4py") is None:
            raise ValueError(
                "--deepspeed needs a launcher, also for one rank: deepspeed --num_gpus 1 SCRIPT …, or torchrun"
            )
        return
    try:
        if deepspeed_config:
            _init_deepspeed(is_on_cpu, backend, timedelta(seconds=seconds))
        elif is_on_cpu and launched_ranks() > 1 and launched and backend in (None, "gloo"):
            distributed.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except distributed.DistNetworkError:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ValueError(f"ranks cannot connect to {address}; if another run uses it, give --master_port N") from None


def _init_deepspeed(is_on_cpu: bool, backend: str | None, timeout: timedelta) -> None:
    import deepspeed

    from rank_group import extension_locks

    extension_locks.install()
    if is_on_cpu:  # DeepSpeed would compile this operation for minutes; only its inference uses it
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, timeout=timeout)
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
    """Wait for all ranks, then destroy the process group: a rank that exits early can abort a rank that is saving."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
