"""The command line of every tool: options by fire, mistakes as one line and exit status 2, Ctrl-C as 130.

the tools of this stage import it.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import fire


def run(command: Callable[..., None] | Mapping[str, Callable[..., None]]) -> None:
    """Run a tool's command, or that of its commands which the command line names."""
    asked = "--help" in sys.argv
    named = sys.argv[1:2] if isinstance(command, Mapping) and sys.argv[1:2] != ["--help"] else []
    component: Any = dict(command) if isinstance(command, Mapping) else command
    try:
        fire.Fire(component, [*named, "--", "--help"] if asked else None)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(f"\n{str(error) or 'interrupted; the same command goes on where it was'}", file=sys.stderr)
        sys.exit(130)


def refuse(unknown: Mapping[str, object]) -> None:
    """Raise ValueError on an option that the command does not have (fire itself would notice only afterwards)."""
    if unknown:
        raise ValueError(f"unknown option --{next(iter(unknown))}; see --help")


def flag(value: object, option: str) -> bool:
    """A yes-or-no option as fire gives it: True, False, or their spelling."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"{option} takes True or False, not {value!r}")
    return value


def parse_size(size: str | int) -> int:
    """Bytes of `5GB`, `400MB`, `2GiB` or a plain number."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}
    text = str(size).strip().upper()
    digits = text.rstrip("KMGIB ")
    try:
        result = int(float(digits) * units[text[len(digits) :].strip()])
    except (ValueError, KeyError):
        raise ValueError(f"{size!r} is no size; write it as 5GB, 400MB or a number of bytes") from None
    if result <= 0:
        raise ValueError(f"{size!r} is no size for a shard; write it as 5GB, 400MB or a number of bytes")
    return result
