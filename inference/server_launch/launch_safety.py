"""Safety options of the launcher, and presets that make a server safe by default."""

import argparse
import ipaddress
from collections.abc import MutableMapping

from vllm_bridge.vllm_hooks import default_max_num_seqs

ROUTES = "routes.routes_middleware.RoutesMiddleware"
GUARD = "server_guard.guard_middleware.GuardMiddleware"
MAX_BODY_MIB = 8
SHUTDOWN_SECONDS = 600
QUEUE_FACTOR = 4  # requests in the server per concurrent sequence of the engines


def add_safety_options(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> None:
    """Add the launcher's safety options to `group`, and change the default of vLLM's --shutdown-timeout."""
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
    """Add the middleware and the safe defaults to args and environment; return notes to print.

    Raises ValueError for an invalid limit or key, and for options that serve without the guard.
    """
    from server_guard.guard_middleware import api_keys
    from server_guard.request_limits import parse_limit

    keys = api_keys(args.api_key, environment.get("VLLM_API_KEY"))
    for option, limit in (("--limit-requests", args.limit_requests), ("--limit-tokens", args.limit_tokens)):
        if limit is not None:
            parse_limit(limit, option)
    if args.max_body_mib < 1:
        raise ValueError(f"--max-body-mib {args.max_body_mib} admits no request; give 1 or more")
    if args.grpc or environment.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise ValueError("--grpc and VLLM_USE_RUST_FRONTEND serve without keys, limits and /generate; remove them")
    args.middleware = [*args.middleware, ROUTES, GUARD]  # the last is the outermost
    environment.setdefault("FORWARDED_ALLOW_IPS", "")  # clients cannot choose their address with X-Forwarded-For
    notes = []
    if args.max_num_queued_reqs is None:
        at_once = args.data_parallel_size * (args.max_num_seqs or default_max_num_seqs(args))
        args.max_num_queued_reqs = QUEUE_FACTOR * at_once
        notes.append(f"--max-num-queued-reqs {args.max_num_queued_reqs}: requests beyond these are answered 503")
    if not keys and not args.uds and not is_loopback(args.host or ""):
        host = args.host or "all addresses"
        notes.append(f"--host {host}: no key is required (VLLM_API_KEY=KEY requires one)")
    if (args.limit_requests or args.limit_tokens) and (args.api_server_count or args.data_parallel_size) > 1:
        notes.append("each API process counts for itself; a caller may get the limits once in each")
    return notes


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server at `host`; "" means all addresses."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
