"""What the launcher fills in: former options, the plugin that brings our routes, and a machine without a GPU."""

import argparse
import math
import os
from collections.abc import Mapping, MutableMapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from server_launch.cpu_limits import check_limits, packed

PLUGIN = "knowlm"  # in knowlm_inference-1.dist-info/entry_points.txt
HUB_RESOLVER = "lora_hf_hub_resolver"  # of vLLM's; it downloads adapters, and loads only where it is named
GIB = 2**30
# Widths of attention heads that vLLM 0.32's CPU kernel was compiled for: all multiples of 8 up to 512 were tried on it.
CPU_HEAD_WIDTHS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
Environment = MutableMapping[str, str]

# Published options that vLLM no longer has: (values they take, options in their place, what to say).
FORMER_OPTIONS: dict[str, tuple[int, list[str], str]] = {
    "--use-np-weights": (0, [], "vLLM reads safetensors without a copy of its own"),
    "--use-dummy-weights": (0, ["--load-format", "dummy"], "now --load-format dummy"),
    "--worker-use-ray": (0, ["--distributed-executor-backend", "ray"], "now --distributed-executor-backend ray"),
    "--engine-use-ray": (0, [], "the engine has a process of its own anyway"),
    "--disable-log-requests": (0, [], "requests are logged only with --enable-log-requests"),
    "--swap-space": (1, [], "vLLM computes preempted requests again instead of swapping them"),
    "--max-paddings": (1, [], "vLLM pads no batches"),
}


def translate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line with former options replaced or left out, and one line about each."""
    current: list[str] = []
    notices = []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        option = name.replace("_", "-")
        if option not in FORMER_OPTIONS:
            current.append(word)
            continue
        values, instead, why = FORMER_OPTIONS[option]
        if values and not equals:
            next(words, None)
        current += instead
        notices.append(f"{option} is not needed any more: {why}")
    return current, notices


def allow_plugin(environment: Environment) -> None:
    """Name our endpoint in VLLM_PLUGINS, which then must name every other plugin that is to load, too."""
    allowed = environment.get("VLLM_PLUGINS")
    if allowed is None:
        found = entry_points()
        groups = [group for group in found.groups if group.startswith("vllm.") and group != "vllm.endpoint_plugins"]
        names = sorted({entry.name for group in groups for entry in found.select(group=group)} - {HUB_RESOLVER})
    else:
        names = [name for name in allowed.split(",") if name]
    environment["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*names, PLUGIN]))


def head_width(config: Mapping[str, Any]) -> int:
    """Width of an attention head by a checkpoint's config.json; 0 where it does not say."""
    return config.get("head_dim") or config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1)


def check_heads(config: Mapping[str, Any]) -> None:
    """Raise ValueError where vLLM would start on a CPU and then fail at the first request."""
    width = head_width(config)
    if width and width not in CPU_HEAD_WIDTHS:
        raise ValueError(
            f"the attention heads of this model are {width} wide, and without a GPU vLLM serves "
            f"{', '.join(map(str, CPU_HEAD_WIDTHS))}; use a GPU or examples/, or train one with such heads"
        )


def kv_cache_gib(config: Mapping[str, Any], context: int | None = None) -> int:
    """GiB that hold the keys and values of one sequence as long as the context, in float32; at least 1.

    config: the checkpoint's config.json; context: tokens, where it is not the checkpoint's own.
    """
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads") or 1
    a_token = 2 * 4 * config.get("num_hidden_layers", 0) * heads * head_width(config)  # bytes
    return max(1, math.ceil(a_token * (context or config.get("max_position_embeddings", 0)) / GIB))


def bind_cores(cores: Sequence[int], ranks: int) -> str:
    """VLLM_CPU_OMP_THREADS_BIND for `ranks` processes that share `cores` evenly: 0,1|2,3.

    Raises ValueError where there are fewer cores than processes.
    """
    if len(cores) < ranks:
        raise ValueError(
            f"{ranks} processes (tensor times pipeline parallel size) need {ranks} cores and there are {len(cores)}; "
            "lower --tensor-parallel-size or --pipeline-parallel-size"
        )
    shares = [cores[len(cores) * rank // ranks : len(cores) * (rank + 1) // ranks] for rank in range(ranks)]
    return "|".join(",".join(map(str, share)) for share in shares)


def preset_for_cpu(args: argparse.Namespace, config: Mapping[str, Any], environment: Environment) -> list[str]:
    """Fill in what the user left open for a machine without a GPU, in args and in environment; returns what to say.

    config: the checkpoint's config.json. Raises ValueError where the processes asked for do not fit the machine.
    """
    check_heads(config)
    check_limits(args, config)
    said = []
    compiling = ("enforce_eager", "compilation_config", "optimization_level")
    # Without compiling, vLLM 0.32 leaves out the step in which a pipeline makes its buffers.
    if args.pipeline_parallel_size == 1 and all(getattr(args, name) is None for name in compiling):
        args.enforce_eager = True
        said.append("no GPU: --enforce-eager, for a start without compiling (--no-enforce-eager compiles)")
    stored = config.get("dtype", config.get("torch_dtype"))
    if args.dtype is None and stored == "float32" and not packed(config):
        args.dtype = "float32"
        said.append("no GPU: --dtype float32, as the checkpoint has it (auto would round it to bfloat16)")
    context = args.max_model_len if args.max_model_len and args.max_model_len > 0 else None
    if args.enable_chunked_prefill is None:
        if (args.max_num_batched_tokens or math.inf) >= (context or config.get("max_position_embeddings", 0)):
            args.enable_chunked_prefill = False
            said.append("no GPU: --no-enable-chunked-prefill, for the engine dies of a prompt in parts that has a seed")
        else:
            said.append(
                "no GPU: a request with a seed can end the engine; --max-num-batched-tokens is below the context"
            )
    if args.kv_cache_memory_bytes is None and not environment.get("VLLM_CPU_KVCACHE_SPACE"):
        gib = environment["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib(config, context))
        said.append(f"no GPU: {gib} GiB for the cache of keys and values (VLLM_CPU_KVCACHE_SPACE sets it)")
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size
    numa_nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    if ranks > numa_nodes and args.nnodes == 1 and "VLLM_CPU_OMP_THREADS_BIND" not in environment:
        bound = environment["VLLM_CPU_OMP_THREADS_BIND"] = bind_cores(sorted(os.sched_getaffinity(0)), ranks)
        said.append(f"no GPU: {ranks} processes on the cores {bound} (VLLM_CPU_OMP_THREADS_BIND sets them)")
    return said
