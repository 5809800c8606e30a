"""Parse the JSON values of a text file one at a time: objects on one line or several, and the items of lists.

A window of whole lines moves over the file. If a value does not end in the window, the unparsed part of the window at
least doubles and the value is parsed again. The time is therefore linear in the size of the file, and the memory in the
size of the longest line or value.
"""

import codecs
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, TextIO

from json_rows.compressed_files import READ_ERRORS, decompressed_file

BLOCK_CHARACTERS = 1 << 18  # read at a time
# A byte order mark is skipped between values too, since joined files may each begin with one.
INLINE_SPACE = re.compile(r"[ \t\r\ufeff]*")
WHITESPACE = re.compile(r"[ \t\r\n\ufeff]*")
LONE_SURROGATE = "has half a surrogate pair (\\ud800 to \\udfff), which is not a character; correct it"


class InvalidJsonError(ValueError):
    """The text at the window's position is not a valid JSON value; the message has the reason and the remedy."""


class Value(NamedTuple):
    """A JSON value of a file."""

    line: int  # the line on which the value begins; the first line is 1
    content: object
    error: str  # message if the value has invalid characters, else ""


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"has the number {word}, which is not JSON; write null")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"has the number {digits}, which is too large for a float; write it as text")
    return number


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)  # keeps the last of duplicate keys


def text_file(file: BinaryIO, path: Path) -> TextIO:
    """Return a text file that decompresses and decodes an open file: UTF-8, or UTF-16 with a byte order mark.

    Only "\\n" ends a line. Invalid UTF-8 bytes become lone surrogates (see `encoding_error`). Raises ValueError for
    another encoding, if it is recognised.
    """
    with path.open("rb") as beginning:
        head = decompressed_file(beginning, path).read(4)
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise ValueError(f"{path}:1 is UTF-32; convert it to UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return io.TextIOWrapper(decompressed_file(file, path), "utf-16", "surrogatepass", newline="\n")
    if b"\0" in head:
        raise ValueError(f"{path}:1 is not text, or is UTF-16 without a byte order mark; convert it to UTF-8")
    return io.TextIOWrapper(decompressed_file(file, path), "utf-8-sig", "surrogateescape", newline="\n")


class TextWindow:
    """A window of whole lines of a text file, and the parser's position in it."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.lines: TextIO | None = None
        self.text, self.at, self.line = "", 0, 1
        self.one_row_per_line: bool | None = None  # None: not known yet; True: `grow` appends no line

    def read_line(self) -> bool:
        """Replace the window with the next line; return False at the end of the file."""
        self.text, self.at = self._read(0), 0
        return bool(self.text)

    def grow(self) -> bool:
        """Append lines with at least as many characters as the unparsed part of the window has.

        Returns False at the end of the file, and if `one_row_per_line` is true.
        """
        more = "" if self.one_row_per_line else self._read(max(BLOCK_CHARACTERS, len(self.text) - self.at))
        if more:
            self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def _read(self, size: int) -> str:
        """Return the next line if `size` is 0, else lines with at least `size` characters in total.

        Raises ValueError if they are damaged.
        """
        try:
            self.lines = self.lines or text_file(self.file, self.path)
            return "".join(self.lines.readlines(size)) if size else self.lines.readline()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} ends within a UTF-16 character; download or copy it again") from None
        except READ_ERRORS as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{self.path} is damaged after line {self.line} ({reason}); download or copy it again"
            ) from None

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Move past a match of the pattern; return the next character, or "" if the window ends and cannot grow."""
        while True:
            self.advance(pattern.match(self.text, self.at).end())  # type: ignore[union-attr]  # matches empty text too
            if self.at < len(self.text) or not self.grow():
                return self.text[self.at : self.at + 1]

    def advance(self, end: int) -> None:
        """Move to index `end` of the window and count the lines on the way."""
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def line_end(self) -> int:
        """Return the index of the end of the current line in the window."""
        end = self.text.find("\n", self.at)
        return len(self.text) if end < 0 else end

    def current_line(self) -> str:
        """Return the text of the line at the current position."""
        return self.text[self.text.rfind("\n", 0, self.at) + 1 : self.line_end()]

    def is_one_line(self) -> bool:
        """Return whether the window is a single line."""
        return self.text.find("\n", 0, -1) < 0

    def extra_data(self) -> str:
        """Return "" if the line ends here or another row follows on it; else skip its rest and return an error."""
        if self.skip(INLINE_SPACE) in ("", "\n", "{", "["):
            return ""
        error = f"is not JSON (extra data {excerpt(self.text, self.at)}); correct it"
        self.at = self.line_end()
        return error

    def parse(self) -> Value:
        """Return the value that begins here, and move to its end.

        Raises InvalidJsonError if there is no valid value, and moves to the error if its position is known.
        """
        while True:
            try:
                content, end = DECODER.raw_decode(self.text, self.at)
                break
            except json.JSONDecodeError as error:
                at_end = not self.text[error.pos :].strip() and not error.msg.startswith("Invalid control character")
                if not at_end or not self.grow():
                    self.advance(error.pos)
                    raise InvalidJsonError(syntax_error(error)) from None
            except RecursionError:
                raise InvalidJsonError("is nested too deep; write it with fewer levels") from None
            except ValueError as error:  # raised for a number
                too_long = "has an integer of more than 4300 digits; write it as text"
                raise InvalidJsonError(too_long if "integer string" in str(error) else str(error)) from None
        line, raw = self.line, self.text[self.at : end]
        self.advance(end)
        message = encoding_error(raw)
        if not message and ("\\ud" in raw or "\\uD" in raw) and encoding_error(json.dumps(content, ensure_ascii=False)):
            message = LONE_SURROGATE  # written as an escape sequence
        return Value(line, content, message)

    def list_items(self) -> Iterator[Value]:
        """Yield the items of the list that begins here; raises InvalidJsonError as `parse`."""
        self.advance(self.at + 1)
        separator = "," if self.skip(WHITESPACE) != "]" else "]"
        while separator == ",":
            yield self.parse()
            if (separator := self.skip(WHITESPACE)) == ",":
                self.advance(self.at + 1)
                self.skip(WHITESPACE)
        if separator != "]":
            raise InvalidJsonError("is not JSON (',' or ']' is missing here); correct it")
        self.advance(self.at + 1)


def encoding_error(text: str) -> str:
    """Return a message if the bytes of a text were not UTF-8, or if it has a lone surrogate; "" if it is valid."""
    try:
        text.encode()  # many times faster than a search
        return ""
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
    is_byte = 0xDC80 <= code <= 0xDCFF
    return f"is not UTF-8 (byte 0x{code - 0xDC00:02x}); convert the file to UTF-8" if is_byte else LONE_SURROGATE


def syntax_error(error: json.JSONDecodeError) -> str:
    """Return the message for an error of the parser."""
    return f"is not JSON ({error.msg.removesuffix(' at')} {excerpt(error.doc, error.pos)}); correct it"


def excerpt(text: str, at: int) -> str:
    """Return the next characters at a position of a text, for messages."""
    return f"at {text[at : at + 20].splitlines()[0]!r}" if text[at : at + 20].strip() else "at the end"
