"""Ranks that run as one: meeting before the model is loaded, parting when all is saved.

finetune.py begins and ends with it.
"""

import os
from pathlib import Path
from typing import Any


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate launch, deepspeed) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process speaks for all."""
    return int(os.environ.get("RANK", "0")) == 0


def meet(deepspeed_config: Any) -> None:
    """Before TrainingArguments looks at the machine: with DeepSpeed the ranks meet now, or its ZeRO-3 loading sees one.

    Without a GPU, accelerate takes DeepSpeed only if the environment says so; and the memory that DeepSpeed's ranks
    share there, some 60 MB each, outlives them unless its names are removed once all have opened it.
    """
    if not deepspeed_config or "LOCAL_RANK" not in os.environ:
        return
    import deepspeed
    import torch

    try:
        deepspeed.init_distributed()
    except torch.distributed.DistNetworkError:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ValueError(f"the ranks cannot meet at {place}; another run may hold it: give --master_port N") from None
    if torch.cuda.is_available():
        return
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    torch.distributed.barrier()
    mine = f"deepspeed_allreduce_buffer_{os.getuid()}_*_{os.environ.get('MASTER_PORT')}_{os.environ.get('RANK')}"
    for buffer in Path("/dev/shm").glob(mine):
        buffer.unlink(missing_ok=True)


def part() -> None:
    """End together: a rank that leaves while another saves may take it down."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
