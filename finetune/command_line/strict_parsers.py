"""argparse parsers with one-line errors and without abbreviations, and an option type for whole numbers."""

from command_line.command_errors import unknown_option
from command_line.option_values import WHOLE_NUMBER

import argparse
from collections.abc import Callable
from typing import Any, NoReturn


class OneLineErrorMixin:
    """Mixin for parser classes: invalid arguments raise ValueError with one line instead of printing the usage."""

    def error(self: Any, message: str) -> NoReturn:
        _, _, unknown = message.partition("unrecognized arguments: ")
        if unknown.startswith("-"):
            raise unknown_option(unknown.split()[0].partition("=")[0], self._option_string_actions)
        raise ValueError(f"{message.removeprefix('argument ')}; see --help")


class StrictParser(OneLineErrorMixin, argparse.ArgumentParser):
    """A parser that accepts no abbreviations and prints its description without reformatting it."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers of at least `minimum`."""

    def number(text: str) -> int:
        if not WHOLE_NUMBER.fullmatch(text) or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {minimum} or more")
        return int(text)

    return number
