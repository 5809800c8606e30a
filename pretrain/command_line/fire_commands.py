"""Command lines from function signatures, in the syntax of Python Fire: each parameter is an option.

Fire's own parser is not used, because it evaluates values as Python (a folder `run#2` becomes `run`, and `2026_11_29` a
number), calls the function before it reports surplus arguments, and accepts one-letter abbreviations. Only Fire's help
text is used. This module checks all arguments before the call, and parses each value by the type of its parameter
(option_values.py).
"""

from command_line.command_errors import repeated_option, run_command, unknown_option
from command_line.option_values import is_bool, parse_value

import inspect
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from fire import helptext, trace

Command = Callable[..., Any]
OPTION = re.compile(r"--|-[A-Za-z]")  # Fire's rule for options; `-1` and `-` are values
SHORT_FORM = re.compile(r"^( +)-\w, --", re.MULTILINE)


def run(
    command: Command | Mapping[str, Command],
    *,
    extra_option_types: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> NoReturn:
    """Call a function with the options of the command line, then exit.

    command: the function, or several functions by name; the first argument then selects one. extra_option_types: name
    -> type of the options that the function takes as **options; if None, **options takes all other options, as text.
    without_effect: see `read_options`. Exit status: see `run_command`.
    """
    run_command(partial(call, command, sys.argv[1:], extra_option_types, without_effect))


def call(
    command: Command | Mapping[str, Command],
    arguments: Sequence[str],
    extra_option_types: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> None:
    """Call the selected function with the options in `arguments`, or print its help if --help or -h is among them.

    Raises ValueError before the call if the options are invalid.
    """
    name, is_help = Path(sys.argv[0]).name, "--help" in arguments or "-h" in arguments
    if isinstance(command, Mapping):
        if not arguments or (arguments[0] not in command and not is_help):
            reason = f"unknown command {arguments[0]!r}" if arguments else "the command is missing"
            raise ValueError(f"{reason}; give one of {', '.join(command)}")
        if arguments[0] in command:
            name, command, arguments = f"{name} {arguments[0]}", command[arguments[0]], arguments[1:]
    if is_help:
        print(help_text(command, name))
    elif not isinstance(command, Mapping):
        command(**read_options(command, arguments, extra_option_types, without_effect))


def read_options(
    function: Command,
    arguments: Sequence[str],
    extra_option_types: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the value of each option; accepts Fire's syntax without one-letter abbreviations.

    Syntax: `--name value`, `--name=value`, `--flag`, `--noflag`; `-` and `_` are equivalent in names; values without a
    name are assigned to the remaining parameters in order. without_effect: option -> reason, for options of the
    original KnowLM scripts that are ignored with a notice. Raises ValueError on unknown or missing options, on missing,
    surplus or invalid values, and on options that are given twice.
    """
    parameters, hints = inspect.signature(function).parameters.values(), get_type_hints(function)
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    types = {parameter.name: hints.get(parameter.name, str) for parameter in named} | dict(extra_option_types or {})
    takes_any, ignored = extra_option_types is None and len(named) < len(parameters), without_effect or {}
    given: dict[str, str] = {}
    unnamed: list[str] = []
    pending = deque(arguments)
    while pending:
        argument = pending.popleft()
        if not OPTION.match(argument):
            unnamed.append(argument)
            continue
        if argument == "--":
            raise ValueError("Python Fire's own options, which follow --, are not accepted; remove -- and all after it")
        written, equals, text = argument.partition("=")
        name = written[2:].replace("-", "_") if written.startswith("--") else ""
        has_value = bool(equals) or (bool(pending) and not OPTION.match(pending[0]))
        negated = name[2:] if name.startswith("no") and not equals else ""
        if is_bool(types.get(negated)) and name not in types and name not in ignored:
            name, text = negated, "False"
        elif name in types or name in ignored or (takes_any and name):
            if not has_value and name in types and not is_bool(types[name]):
                raise ValueError(f"{written} needs a value; one that begins with - is written {written}=-VALUE")
            text = text if equals else pending.popleft() if has_value else "True"
        else:
            raise unknown_option(written, [f"--{name}" for name in types])
        if name in given:
            raise repeated_option(f"--{name}", given[name], text)
        given[name] = text
    for name in [name for name in given if name in ignored]:
        print(f"notice: --{name} has no effect: {ignored[name]}", file=sys.stderr)
        del given[name]
    remaining = [parameter.name for parameter in named if parameter.name not in given]
    if len(unnamed) > len(remaining):
        raise ValueError(f"unexpected value {unnamed[len(remaining)]!r}; see --help")
    given |= dict(zip(remaining, unnamed, strict=False))
    for parameter in named:
        if parameter.default is parameter.empty and not given.get(parameter.name):  # Path("") is the current folder
            fault = "is empty" if parameter.name in given else "is missing"
            raise ValueError(f"--{parameter.name} {fault}; see --help")
    return {name: parse_value(f"--{name}", text, types.get(name, str)) for name, text in given.items()}


def help_text(command: Command | Mapping[str, Command], name: str) -> str:
    """Return Fire's help text without one-letter abbreviations, which are not accepted here."""
    component = command if callable(command) else dict(command)
    text: str = helptext.HelpText(component, trace=trace.FireTrace(component, name=name))
    return SHORT_FORM.sub(r"\1--", text)
