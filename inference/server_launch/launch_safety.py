"""The launcher's options about safety, and what it presets so that a server is safe before anyone thinks of it."""

import argparse
import ipaddress
from collections.abc import MutableMapping

from vllm_bridge.vllm_imports import part

GUARD = "server_guard.guard_middleware.Guard"
MAX_BODY_MIB = 8
SHUTDOWN_SECONDS = 600
QUEUE_DEPTH = 4  # requests in the server for each that the engine computes at once


def add_safety_options(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> None:
    """Our options, into a group of vLLM's parser, and our defaults of vLLM's."""
    group.add_argument(
        "--max-body-mib", type=int, default=MAX_BODY_MIB, metavar="N", help="longest body of a request, in MiB"
    )
    group.add_argument(
        "--limit-requests", metavar="LIMIT", help="requests per key and per address, such as 60/minute;1000/day"
    )
    group.add_argument(
        "--limit-tokens", metavar="LIMIT",
        help="tokens per key and per address, of prompt and answer, such as 100000/hour",
    )  # fmt: skip
    parser.set_defaults(shutdown_timeout=SHUTDOWN_SECONDS)


def preset_safety(args: argparse.Namespace, environment: MutableMapping[str, str]) -> list[str]:
    """Fill in what the user left open about safety, in args and in environment; returns what to say.

    Raises ValueError where an option cannot be meant, or would leave the server without its guard.
    """
    from server_guard.guard_middleware import api_keys
    from server_guard.request_limits import parse_limit

    keys = api_keys(args.api_key, environment.get("VLLM_API_KEY"))
    for option, limit in (("--limit-requests", args.limit_requests), ("--limit-tokens", args.limit_tokens)):
        if limit is not None:
            parse_limit(limit, option)
    if args.max_body_mib < 1:
        raise ValueError(f"--max-body-mib {args.max_body_mib} lets nothing in; give 1 or more")
    if args.grpc or environment.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise ValueError("--grpc and VLLM_USE_RUST_FRONTEND serve past keys, limits and /generate; leave them out")
    args.middleware = [*args.middleware, GUARD]  # the last is the outermost
    environment.setdefault("FORWARDED_ALLOW_IPS", "")  # a caller may not choose its address with X-Forwarded-For
    said = []
    if args.max_num_queued_reqs is None:
        args.max_num_queued_reqs = QUEUE_DEPTH * at_once(args)
        said.append(f"--max-num-queued-reqs {args.max_num_queued_reqs}: requests beyond these are answered 503")
    if not keys and not args.uds and not is_loopback(args.host or ""):
        host = args.host or "every address"
        said.append(f"--host {host}: whoever reaches it is served without a key (VLLM_API_KEY=KEY asks for one)")
    if (args.limit_requests or args.limit_tokens) and (args.api_server_count or args.data_parallel_size) > 1:
        said.append("each API process counts for itself; a caller may get the limits once in each")
    return said


def at_once(args: argparse.Namespace) -> int:
    """How many requests the engines compute at the same time; by vLLM's default where --max-num-seqs is not given."""
    usual = part("AsyncEngineArgs").get_batch_defaults(args.tensor_parallel_size * args.pipeline_parallel_size)[1]
    return args.data_parallel_size * (args.max_num_seqs or usual[part("UsageContext").OPENAI_API_SERVER])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there. "" is every address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
