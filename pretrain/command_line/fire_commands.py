"""Command lines from function signatures, through Python Fire: each parameter is an option.

Fire itself evaluates values as Python (a folder `run#2` becomes `run`, and `2026_11_29` a number), calls the function
before it reports surplus arguments, and accepts one-letter abbreviations. Here all arguments are checked before the
call, and each value is parsed by the type of its parameter (option_values.py); text is not evaluated.
"""

from command_line.command_errors import run_command, unknown_option
from command_line.option_values import is_bool, value_of

import inspect
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import fire
from fire import helptext, trace
from fire.decorators import SetParseFn, SetParseFns

Command = Callable[..., Any]
OPTION = re.compile(r"--|-[A-Za-z]")  # Fire's rule for options; `-1` and `-` are values
SHORT_FORM = re.compile(r"^( +)-\w, --", re.MULTILINE)


def run(
    command: Command | Mapping[str, Command],
    *,
    more_options: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
    failures: Mapping[type[Exception], int] | None = None,
) -> NoReturn:
    """Call a function with the options of the command line, then exit.

    command: the function, or several functions by name; the first argument then selects one. more_options: names and
    types of the options that the function takes as **options; None: it takes any option as text. without_effect: see
    `read_options`. failures, and the exit status: see `exit_status`.
    """
    run_command(partial(call, command, sys.argv[1:], more_options, without_effect), failures)


def call(
    command: Command | Mapping[str, Command],
    words: Sequence[str],
    more_options: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> None:
    """Call the function with the options in `words`; raises ValueError before the call if they are invalid."""
    name, asked_for_help = Path(sys.argv[0]).name, "--help" in words or "-h" in words
    if isinstance(command, Mapping):
        if not words or (words[0] not in command and not asked_for_help):
            said = f"there is no command {words[0]!r}" if words else "the command is missing"
            raise ValueError(f"{said}; take one of {', '.join(command)}")
        if words[0] in command:
            name, command, words = f"{name} {words[0]}", command[words[0]], words[1:]
    if asked_for_help:
        print(help_text(command, name))
    elif not isinstance(command, Mapping):
        texts = read_options(command, words, more_options, without_effect)
        kinds = option_types(command, more_options).items()

        @SetParseFn(str)
        @SetParseFns(**{name: partial(value_of, f"--{name}", kind=kind) for name, kind in kinds})
        @wraps(command)
        def typed_command(*values: Any, **options: Any) -> None:
            command(*values, **options)

        fire.Fire(typed_command, [f"--{name}={text}" for name, text in texts.items()])


def option_types(function: Command, more_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the type of each option, in the order of the parameters; str if the parameter has no annotation."""
    hints = get_type_hints(function)
    named = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
    return {one.name: hints.get(one.name, str) for one in named} | dict(more_options or {})


def read_options(
    function: Command,
    words: Sequence[str],
    more_options: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the value of each option as text; accepts Fire's syntax without one-letter abbreviations.

    Syntax: `--name value`, `--name=value`, `--flag`, `--noflag`; `-` and `_` are equivalent in names; values without a
    name are assigned to the remaining parameters in order. without_effect: options of published command lines that are
    ignored with a notice, and the reason. Raises ValueError on unknown or missing options, missing values, and surplus
    values.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_any = more_options is None and any(one.kind is one.VAR_KEYWORD for one in parameters)
    kinds, ignored = option_types(function, more_options), without_effect or {}
    texts: dict[str, str] = {}
    unnamed: list[str] = []
    pending = deque(words)
    while pending:
        word = pending.popleft()
        if not OPTION.match(word):
            unnamed.append(word)
            continue
        written, equals, text = word.partition("=")
        name = written[2:].replace("-", "_") if written.startswith("--") else ""
        has_value = bool(equals) or (bool(pending) and not OPTION.match(pending[0]))
        negated = name[2:] if name.startswith("no") and not equals else ""
        if name in kinds or name in ignored or (takes_any and name):
            if not has_value and name in kinds and not is_bool(kinds[name]):
                raise ValueError(f"{written} needs a value; one that begins with - is written {written}=-VALUE")
            texts[name] = text if equals else pending.popleft() if has_value else "True"
        elif is_bool(kinds.get(negated)):
            texts[negated] = "False"
        else:
            raise unknown_option(written, [f"--{name}" for name in kinds])
    for name in [name for name in texts if name in ignored]:
        print(f"notice: --{name} has no effect: {ignored[name]}", file=sys.stderr)
        del texts[name]
    open_names = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD and one.name not in texts]
    if len(unnamed) > len(open_names):
        raise ValueError(f"{unnamed[len(open_names)]!r} is one value too many; see --help")
    texts |= dict(zip(open_names, unnamed, strict=False))
    for one in parameters:
        if one.default is one.empty and one.kind is not one.VAR_KEYWORD and one.name not in texts:
            raise ValueError(f"--{one.name} is missing; see --help")
    return texts


def help_text(command: Command | Mapping[str, Command], name: str) -> str:
    """Return Fire's help text without one-letter abbreviations, which are not accepted here."""
    component = command if callable(command) else dict(command)
    text: str = helptext.HelpText(component, trace=trace.FireTrace(component, name=name))
    return SHORT_FORM.sub(r"\1--", text)
