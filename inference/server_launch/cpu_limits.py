"""Checks of options that need a GPU: without one, vLLM 0.32 fails with a traceback or at the first request."""

import argparse
from collections.abc import Mapping
from typing import Any


def is_packed(config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint has 4-bit weights (GPTQ, AWQ), which vLLM cannot multiply in float32."""
    return quantization_format(config) == "pack-quantized"


def quantization_format(config: Mapping[str, Any]) -> str:
    """Return the compressed-tensors format in a checkpoint's config.json, "" if it is not quantized."""
    return (config.get("quantization_config") or {}).get("format", "")


def check_limits(args: argparse.Namespace, config: Mapping[str, Any]) -> None:
    """Raise ValueError for options that need a GPU; config: the checkpoint's config.json."""
    if args.distributed_executor_backend == "ray":
        raise ValueError("vLLM serves over Ray on GPUs only; without a GPU use --nnodes and --node-rank")
    if args.pipeline_parallel_size > 1 and (args.enforce_eager or args.enable_lora):
        raise ValueError(
            "without a GPU, vLLM's pipeline serves compiled models without adapters only; remove --enforce-eager and "
            "--lora-modules, or use --tensor-parallel-size instead"
        )
    if args.enable_lora and args.fully_sharded_loras:
        raise ValueError("without a GPU, adapters are not sharded over processes; remove --fully-sharded-loras")
    if args.enable_lora and args.worker_cls != "auto":
        raise ValueError("without a GPU, adapters need the launcher's own --worker-cls; remove yours")
    if args.dtype == "float32" and is_packed(config):
        raise ValueError("without a GPU, vLLM multiplies 4-bit weights in half precision only; remove --dtype")
    if args.enable_lora and quantization_format(config) == "int-quantized":
        raise ValueError(
            "without a GPU, vLLM serves no adapters on INT8 weights; merge the adapter before you quantize, or "
            "quantize with gptq, awq or fp8"
        )
