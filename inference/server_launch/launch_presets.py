"""Presets of the launcher: replacements of former vLLM options, safe defaults, defaults for a machine without a GPU."""

import argparse
import ipaddress
import math
import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from vllm_bridge.vllm_hooks import default_max_num_seqs

ROUTES = "routes.routes_middleware.RoutesMiddleware"
GUARD = "server_guard.guard_middleware.GuardMiddleware"
QUEUE_FACTOR = 4  # requests that the server accepts per concurrent sequence of its engines
CPU_ADAPTER_WORKER = "vllm_bridge.cpu_adapters.CpuAdapterWorker"
GIB = 2**30
# Head dimensions that vLLM 0.32's CPU attention kernel supports; found by trying all multiples of 8 up to 512.
CPU_HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)

# Published options that vLLM no longer has: (number of values, options that replace it, reason if it is dropped).
FORMER_OPTIONS: dict[str, tuple[int, list[str], str]] = {
    "--use-np-weights": (0, [], "vLLM reads safetensors directly"),
    "--use-dummy-weights": (0, ["--load-format", "dummy"], ""),
    "--worker-use-ray": (0, ["--distributed-executor-backend", "ray"], ""),
    "--engine-use-ray": (0, [], "the engine always has its own process"),
    "--disable-log-requests": (0, [], "requests are logged only with --enable-log-requests"),
    "--swap-space": (1, [], "vLLM recomputes preempted requests instead of swapping them"),
    "--max-paddings": (1, [], "vLLM does not pad batches"),
}


def translate_former_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace or drop former options; return (the new command line, one notice for each former option)."""
    current: list[str] = []
    notices = []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        option = name.replace("_", "-")
        if option not in FORMER_OPTIONS:
            current.append(word)
            continue
        values, replacement, reason = FORMER_OPTIONS[option]
        if values and not equals:
            next(words, None)
        current += replacement
        notices.append(
            f"{option} is replaced by {' '.join(replacement)}" if replacement else f"{option} is dropped: {reason}"
        )
    return current, notices


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the dimension of an attention head, 0 if it is not known; config: the checkpoint's config.json."""
    return config.get("head_dim") or config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1)


def check_heads(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a head dimension without a CPU kernel: vLLM would start, and fail at the first request."""
    dimension = head_dim(config)
    if dimension and dimension not in CPU_HEAD_DIMS:
        raise ValueError(
            f"the head dimension of this model is {dimension}; without a GPU, vLLM supports only "
            f"{', '.join(map(str, CPU_HEAD_DIMS))}; use a GPU or examples/, or train a model with one of these"
        )


def kv_cache_gib(config: Mapping[str, Any], context: int | None = None) -> int:
    """Return the size of the KV cache of one sequence of the full context in float32, in whole GiB; at least 1.

    config: the checkpoint's config.json; context: tokens; None: the checkpoint's max_position_embeddings.
    """
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads") or 1
    bytes_per_token = 2 * 4 * config.get("num_hidden_layers", 0) * heads * head_dim(config)
    return max(1, math.ceil(bytes_per_token * (context or config.get("max_position_embeddings", 0)) / GIB))


def local_processes(args: argparse.Namespace) -> int:
    """Return the number of processes on this machine, each of which computes a copy of the model or part of a copy."""
    one_copy = args.data_parallel_external_lb or args.data_parallel_rank is not None
    copies = args.data_parallel_size if args.data_parallel_size_local is None else args.data_parallel_size_local
    return (1 if one_copy else copies) * args.tensor_parallel_size * args.pipeline_parallel_size


def check_devices(processes: int, devices: int, kind: str) -> None:
    """Raise ValueError if a machine has fewer cores or GPUs than processes; kind: "core" or "GPU"."""
    if devices < processes:
        raise ValueError(
            f"{processes} processes (data x tensor x pipeline parallel size) need {processes} {kind}s, this machine "
            f"has {devices}; lower --data-parallel-size, --tensor-parallel-size or --pipeline-parallel-size"
        )


def bind_cores(cores: Sequence[int], ranks: int) -> str:
    """Return VLLM_CPU_OMP_THREADS_BIND (0,1|2,3) for `ranks` processes that share `cores` evenly.

    Raises ValueError if there are fewer cores than processes.
    """
    check_devices(ranks, len(cores), "core")
    shares = [cores[len(cores) * rank // ranks : len(cores) * (rank + 1) // ranks] for rank in range(ranks)]
    return "|".join(",".join(map(str, share)) for share in shares)


def quantization_format(config: Mapping[str, Any]) -> str:
    """Return the format of compressed-tensors in a checkpoint's config.json, "" if there is none.

    "pack-quantized" are the 4-bit weights of GPTQ and AWQ, "int-quantized" the weights of INT8.
    """
    return (config.get("quantization_config") or {}).get("format", "")


def check_gpu_options(args: argparse.Namespace, config: Mapping[str, Any]) -> None:
    """Raise ValueError for options that need a GPU: without one, vLLM 0.32 fails later, with a traceback.

    config: the checkpoint's config.json.
    """
    if args.distributed_executor_backend == "ray":
        raise ValueError("vLLM serves over Ray on GPUs only; without a GPU use --nnodes and --node-rank")
    if args.pipeline_parallel_size > 1 and (args.enforce_eager or args.enable_lora):
        raise ValueError(
            "without a GPU, vLLM's pipeline parallelism supports only compiled models without adapters; remove "
            "--enforce-eager, --enable-lora and --lora-modules, or --pipeline-parallel-size"
        )
    if args.enable_lora and args.fully_sharded_loras:
        raise ValueError("without a GPU, adapters are not sharded over processes; remove --fully-sharded-loras")
    if args.enable_lora and args.worker_cls != "auto":
        raise ValueError("without a GPU, adapters need the launcher's preset of --worker-cls; remove this option")
    if args.dtype == "float32" and quantization_format(config) == "pack-quantized":
        raise ValueError("without a GPU, vLLM multiplies 4-bit weights in half precision only; remove --dtype")
    if args.enable_lora and quantization_format(config) == "int-quantized":
        raise ValueError(
            "without a GPU, vLLM serves no adapters on INT8 weights; merge the adapter before you quantize, or "
            "quantize with gptq, awq or fp8"
        )


def preset_for_cpu(
    args: argparse.Namespace, config: Mapping[str, Any], environment: MutableMapping[str, str]
) -> list[str]:
    """Set the options and environment variables that a machine without a GPU needs and the user did not give.

    config: the checkpoint's config.json. Returns notices to print. Raises ValueError for options and for a head
    dimension that need a GPU.
    """
    check_heads(config)
    check_gpu_options(args, config)
    notices = []
    compiling = ("enforce_eager", "compilation_config", "optimization_level")
    # Pipelines need compilation: without it, vLLM 0.32 skips the step that allocates a pipeline's buffers.
    if args.pipeline_parallel_size == 1 and all(getattr(args, name) is None for name in compiling):
        args.enforce_eager = True
        notices.append("no GPU: --enforce-eager, to start without compilation (--no-enforce-eager compiles)")
    stored = config.get("dtype", config.get("torch_dtype"))
    if args.dtype is None and stored == "float32" and quantization_format(config) != "pack-quantized":
        args.dtype = "float32"
        notices.append("no GPU: --dtype float32, as in the checkpoint (auto would round its weights to bfloat16)")
    context = args.max_model_len if args.max_model_len and args.max_model_len > 0 else None
    if args.enable_chunked_prefill is None:
        if (args.max_num_batched_tokens or math.inf) >= (context or config.get("max_position_embeddings", 0)):
            args.enable_chunked_prefill = False
            notices.append(
                "no GPU: --no-enable-chunked-prefill (with chunks, a request with a seed can crash the engine)"
            )
        else:
            notices.append(
                "no GPU: a request with a seed can crash the engine, since --max-num-batched-tokens is below the "
                "context; raise it to the context"
            )
    if args.kv_cache_memory_bytes is None and not environment.get("VLLM_CPU_KVCACHE_SPACE"):
        gib = environment["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib(config, context))
        notices.append(f"no GPU: {gib} GiB for the KV cache (VLLM_CPU_KVCACHE_SPACE sets it)")
    ranks = local_processes(args)
    numa_nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    if ranks > numa_nodes and args.nnodes == 1 and "VLLM_CPU_OMP_THREADS_BIND" not in environment:
        cores = environment["VLLM_CPU_OMP_THREADS_BIND"] = bind_cores(sorted(os.sched_getaffinity(0)), ranks)
        notices.append(f"no GPU: {ranks} processes on the cores {cores} (VLLM_CPU_OMP_THREADS_BIND sets them)")
    if args.enable_lora:
        args.worker_cls = CPU_ADAPTER_WORKER
    return notices


def preset_safety(args: argparse.Namespace, environment: MutableMapping[str, str]) -> list[str]:
    """Add the middleware and the safe defaults to args and environment; return notices to print.

    Raises ValueError for an invalid limit, body size or key, and for options that bypass the guard.
    """
    from server_guard.guard_middleware import api_keys
    from server_guard.request_limits import parse_limit

    keys = api_keys(args.api_key, environment.get("VLLM_API_KEY"))
    for option, limit in (("--limit-requests", args.limit_requests), ("--limit-tokens", args.limit_tokens)):
        if limit is not None:
            parse_limit(limit, option)
    if args.max_body_mib < 1:
        raise ValueError(f"--max-body-mib {args.max_body_mib} would refuse every request; give 1 or more")
    if args.grpc or environment.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise ValueError("--grpc and VLLM_USE_RUST_FRONTEND bypass keys, limits and /generate; remove them")
    args.middleware = [*args.middleware, ROUTES, GUARD]  # the last is the outermost
    environment.setdefault("FORWARDED_ALLOW_IPS", "")  # clients cannot choose their address with X-Forwarded-For
    notices = []
    if args.max_num_queued_reqs is None:
        sequences = args.data_parallel_size * (args.max_num_seqs or default_max_num_seqs(args))
        args.max_num_queued_reqs = QUEUE_FACTOR * sequences
        notices.append(f"--max-num-queued-reqs {args.max_num_queued_reqs}: further requests get status 503")
    if not keys and not args.uds and not is_loopback(args.host or ""):
        host = args.host or "all addresses"
        notices.append(f"--host {host}: no key is required (VLLM_API_KEY=KEY requires one)")
    if (args.limit_requests or args.limit_tokens) and (args.api_server_count or args.data_parallel_size) > 1:
        notices.append("each API process counts separately; a client can use up the limits once in each process")
    return notices


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server at `host`; "" means all addresses."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
