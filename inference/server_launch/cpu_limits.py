"""What vLLM 0.32 does not do without a GPU, told in one line; it fails with a traceback, or at the first request."""

import argparse
from collections.abc import Mapping
from typing import Any


def packed(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has 4-bit weights (GPTQ, AWQ), for which there is no product in float32."""
    return quantisation(config) == "pack-quantized"


def quantisation(config: Mapping[str, Any]) -> str:
    """The format of compressed-tensors that a checkpoint's config.json names, "" where it names none."""
    return (config.get("quantization_config") or {}).get("format", "")


def check_limits(args: argparse.Namespace, config: Mapping[str, Any]) -> None:
    """Raise ValueError on what a machine without a GPU cannot be asked for; config: the checkpoint's config.json."""
    if args.distributed_executor_backend == "ray":
        raise ValueError("vLLM serves over Ray on GPUs only; machines without one take --nnodes and --node-rank")
    if args.pipeline_parallel_size > 1 and (args.enforce_eager or args.enable_lora):
        raise ValueError(
            "without a GPU, vLLM's pipeline serves compiled models without adapters only; leave --enforce-eager and "
            "--lora-modules out, or give --tensor-parallel-size instead"
        )
    if args.dtype == "float32" and packed(config):
        raise ValueError("without a GPU, vLLM multiplies 4-bit weights in half precision only; leave --dtype out")
    if args.enable_lora and quantisation(config) == "int-quantized":
        raise ValueError(
            "without a GPU, vLLM serves no adapters on INT8 weights; merge the adapter before quantising, or quantise "
            "with gptq, awq or fp8"
        )
