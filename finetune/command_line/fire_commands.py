"""The command line of a small command: a function's parameters are its options, read by Python Fire.

Fire alone reads values as Python, so that a folder `run#2` becomes `run` and `2026_11_29` a number, runs the function
before it notices words that are left over, and takes one-letter abbreviations. Here every word is checked first, text
stays text, and other values are read by the type of their parameter (option_values.py).
"""

from command_line.command_errors import run_command, unknown_option
from command_line.option_values import is_bool, value_of

import inspect
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import fire
from fire import helptext, trace
from fire.decorators import SetParseFn, SetParseFns

Command = Callable[..., Any]
OPTION = re.compile(r"--|-[A-Za-z]")  # what Fire takes for an option; -1 is a value, and - as well
SHORT_FORM = re.compile(r"^( +)-\w, --", re.MULTILINE)


def run(
    command: Command | Mapping[str, Command],
    *,
    more_options: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
    failures: Mapping[type[Exception], int] | None = None,
) -> NoReturn:
    """Call a function, or the one that the first word names, with the options of the command line; then exit.

    more_options: names and types of what the function takes as **options; without it, any name with text. See
    `read_options` for without_effect, `exit_status` for failures and the exit status.
    """
    run_command(partial(call, command, sys.argv[1:], more_options, without_effect), failures)


def call(
    command: Command | Mapping[str, Command],
    words: Sequence[str],
    more_options: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> None:
    """Call the function with the options that the words say; raises ValueError before that where they say it wrong."""
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
        SetParseFns(**{name: partial(value_of, f"--{name}", kind=kind) for name, kind in kinds})(command)
        SetParseFn(str)(command)
        fire.Fire(command, [f"--{name}={text}" for name, text in texts.items()])


def option_types(function: Command, more_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Option -> type, in the order of the parameters; without a type it is text."""
    hints = get_type_hints(function)
    named = [one for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
    return {one.name: hints.get(one.name, str) for one in named} | dict(more_options or {})


def read_options(
    function: Command,
    words: Sequence[str],
    more_options: Mapping[str, Any] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Option -> text of its value, from words as Fire documents them, without its one-letter abbreviations.

    `--name value`, `--name=value`, `--flag`, `--noflag`, `-` as good as `_` in names, values without a name in the
    order of the parameters. without_effect: options of published command lines that are ignored with a notice, and why.
    Raises ValueError on unknown and missing options, missing values, and values that no parameter is left for.
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
    """Fire's help, without the one-letter abbreviations that are not taken here."""
    component = command if callable(command) else dict(command)
    text: str = helptext.HelpText(component, trace=trace.FireTrace(component, name=name))
    return SHORT_FORM.sub(r"\1--", text)
