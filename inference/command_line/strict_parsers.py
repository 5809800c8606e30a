"""argparse parsers with one-line errors and without abbreviations, and an option type for whole numbers."""

from command_line.command_errors import repeated_option, unknown_option
from command_line.option_values import WHOLE_NUMBER

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class OneLineErrorMixin:
    """Mixin for parser classes: invalid arguments raise ValueError instead of printing the usage."""

    def error(self: Any, message: str) -> NoReturn:
        _, _, unknown = message.partition("unrecognized arguments: ")
        if unknown.startswith("-"):
            raise unknown_option(unknown.split()[0].partition("=")[0], self._option_string_actions)
        raise ValueError(f"{message.removeprefix('argument ')}; see --help")


class StrictParser(OneLineErrorMixin, argparse.ArgumentParser):
    """A parser that accepts no abbreviations and no option twice, and does not reformat its description."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line as argparse does; raises ValueError if an option is given twice."""
        words = list(sys.argv[1:] if args is None else args)
        given: dict[str, str] = {}
        for at, word in enumerate(words):
            name, equals, text = word.partition("=")
            if name in self._option_string_actions and self._option_string_actions[name].nargs != 0:  # not a flag
                values = itertools.takewhile(lambda word: not word.startswith("--"), words[at + 1 :])
                text = text if equals else " ".join(values)
                if name in given:
                    raise repeated_option(name, given[name], text)
                given[name] = text
        return super().parse_known_args(words, namespace)


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers of at least `minimum`."""

    def number(text: str) -> int:
        if not WHOLE_NUMBER.fullmatch(text) or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {minimum} or more")
        return int(text)

    return number
