"""Parse the JSON values of a byte stream one at a time: objects on one line or several, and the items of lists.

The text is held in a window that moves forward. Where a value does not end in the window, the window at least doubles
and the value is parsed again, so the time is linear in the file and the memory in the largest value.
"""

import codecs
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, NoReturn

BLOCK = 1 << 18  # bytes read at a time
BLANKS = re.compile(r"[ \t\r]*")
SPACES = re.compile(r"[ \t\r\n]*")
SURROGATE = re.compile(r"[\ud800-\udfff]")
LONGEST_TOKEN = 16  # characters: a parser's error so near to the window's end may come from a token that is cut there
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, OSError)  # raised while reading a file that is not complete
HALF_PAIR = "has half a surrogate pair (\\ud800 to \\udfff), which is not a character; correct it"


class Value(NamedTuple):
    """A value of the stream, or the reason why there is none at its place."""

    line: int  # on which it begins, from 1
    item: int  # its number among the items of the file's lists, from 1; 0 outside lists
    content: object
    error: str = ""
    blank: bool = False  # a line with nothing on it


class ParseError(ValueError):
    """There is no value here; the parser stopped `offset` characters behind its beginning."""

    def __init__(self, reason: str, offset: int = 0) -> None:
        super().__init__(reason)
        self.offset = offset


class StreamError(ValueError):
    """The rest of the stream cannot be read; `value` says where it ends and why."""

    def __init__(self, value: Value) -> None:
        super().__init__(value.error)
        self.value = value


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"has the number {word}, which is not JSON; write null")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)  # of equal keys, the last one counts


def text_decoder(head: bytes) -> codecs.IncrementalDecoder:
    """The decoder for a stream that begins with `head` (4 bytes): UTF-8, or UTF-16 with a byte order mark.

    Bytes that are not UTF-8 become lone surrogates. Raises ValueError for other encodings that can be told.
    """
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise ValueError("is UTF-32; convert it to UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return codecs.getincrementaldecoder("utf-16")("surrogatepass")
    if b"\0" in head:
        raise ValueError("is not text, or is UTF-16 without a byte order mark; convert it to UTF-8")
    return codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")


class JsonStream:
    """The window on a stream's text, and the parser's place in it."""

    def __init__(self, stream: BinaryIO) -> None:
        """Raises StreamError where the encoding is not read."""
        self.stream, self.text, self.at, self.line, self.ended = stream, "", 0, 1, False
        self.has_surrogates = False
        head = self._read(BLOCK)
        try:
            self.decoder = text_decoder(head[:4])
        except ValueError as error:
            raise self.error(str(error)) from None
        self._append(head)

    def error(self, reason: str, item: int = 0) -> StreamError:
        """The error that ends the stream on the present line."""
        return StreamError(Value(self.line, item, None, reason))

    def _read(self, size: int) -> bytes:
        try:
            return self.stream.read(size)
        except DAMAGED as error:
            raise self.error(f"is damaged after this line ({' '.join(str(error).split())}); get it again") from None

    def _append(self, data: bytes) -> None:
        self.ended = not data
        try:
            piece = self.decoder.decode(data, self.ended)
        except UnicodeDecodeError:
            raise self.error("ends within a UTF-16 character; write it again") from None
        try:
            piece.encode()  # many times faster than a search
        except UnicodeEncodeError:
            self.has_surrogates = True
        self.text, self.at = self.text[self.at :] + piece, 0

    def grow(self) -> bool:
        """Read at least as much text as the window holds; False where the stream has no more."""
        if self.ended:
            return False
        self._append(self._read(max(BLOCK, len(self.text) - self.at)))
        return True

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Pass what the pattern matches; returns the next character, "" at the stream's end."""
        while True:
            end = pattern.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches the empty text, too
            if end > self.at:
                self.advance(end)
            if end < len(self.text):
                return self.text[end]
            if not self.grow():
                return ""

    def advance(self, end: int) -> None:
        """Move to `end`, an index of the window's text."""
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def line_end(self) -> int:
        """Index of the end of the present line in the window."""
        searched = 0
        while (end := self.text.find("\n", self.at + searched)) < 0:
            searched = len(self.text) - self.at
            if not self.grow():
                return len(self.text)
        return end

    def parse(self, within_line: bool) -> tuple[object, int]:
        """The value that begins here and the index of its end; ParseError where there is none."""
        limit = self.line_end() if within_line else 0
        while True:
            text = self.text[:limit] if within_line else self.text
            complete = within_line or self.ended
            try:
                content, end = DECODER.raw_decode(text, self.at)
                if complete or end < len(text):  # else a number may be cut at the window's end
                    return content, end
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(text) - LONGEST_TOKEN
                if complete or not cut:
                    raise ParseError(json_fault(error), error.pos - self.at) from None
            except RecursionError:
                raise ParseError("is nested too deep; write it with fewer levels", len(text) - self.at) from None
            except ValueError as error:  # of a number
                long = "has an integer of more than 4300 digits; write it as text"
                raise ParseError(long if "integer string" in str(error) else str(error)) from None
            self.grow()

    def fault(self, end: int, content: object = None) -> str:
        """What is wrong with the characters from here to `end`, of which `content` was parsed; "" if nothing."""
        if self.has_surrogates and (found := SURROGATE.search(self.text, self.at, end)):
            code = ord(found[0])
            if 0xDC80 <= code <= 0xDCFF and self.decoder.errors == "surrogateescape":
                return f"is not UTF-8 (byte 0x{code - 0xDC00:02x}); convert the file to UTF-8"
            return HALF_PAIR
        if self.text.find("\\ud", self.at, end) >= 0 or self.text.find("\\uD", self.at, end) >= 0:
            try:
                json.dumps(content, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                return HALF_PAIR
        return ""


def json_fault(error: json.JSONDecodeError) -> str:
    """A parser's error in the words of all stages."""
    return f"is not JSON ({error.msg.removesuffix(' at')} {excerpt(error.doc, error.pos)}); correct it"


def excerpt(text: str, at: int) -> str:
    """Words for a place in a text: the characters there."""
    return f"at {text[at : at + 20].splitlines()[0]!r}" if text[at : at + 20].strip() else "at the end"


def json_values(stream: BinaryIO, blank_lines: bool = False) -> Iterator[Value]:
    """The values of a stream, one after another; a list is replaced by its items.

    blank_lines: yield a Value for each blank line, too. A line that is not JSON becomes a Value with the error, and the
    next line is read. Raises StreamError where an error leaves unknown where the next value begins.
    """
    window = JsonStream(stream)
    at_line_start, items = True, 0
    one_line = within_line = False  # whether a value has ended on its line; whether a value must end on its line
    while True:
        character = window.skip(BLANKS)
        if not character:
            return
        if character == "\n":
            if blank_lines and at_line_start:
                yield Value(window.line, 0, None, blank=True)
            window.advance(window.at + 1)
            at_line_start = True
            continue
        at_line_start, line = False, window.line
        if character == "[":
            try:
                for value in _list_items(window, items):
                    items = value.item
                    yield value
            except StreamError as error:
                if not one_line or not error.value.item or window.line != line:
                    raise
                yield error.value
                window.advance(window.line_end())
            continue
        try:
            content, end = window.parse(within_line)
            fault = window.fault(end, content)
            window.advance(end)
            one_line = one_line or window.line == line
            if window.skip(BLANKS) not in ("", "\n", "{", "["):
                line_end = window.line_end()
                fault = fault or f"is not JSON (extra data {excerpt(window.text, window.at)}); correct it"
                window.advance(line_end)
        except ParseError as error:
            line_end = window.line_end()
            fault = window.fault(line_end) or str(error)
            if window.at + error.offset > line_end:  # the value was sought on several lines
                if not one_line:
                    raise StreamError(Value(line, 0, None, fault)) from None
                within_line = True
            window.advance(line_end)
        yield Value(line, 0, None if fault else content, fault)


def _list_items(window: JsonStream, count: int) -> Iterator[Value]:
    """The items of the list that begins here, numbered from count + 1; StreamError where one is not JSON."""
    due = "["
    while True:
        character = window.skip(SPACES)
        if due == "," and character == "]":
            break
        if due and character != due:
            raise window.error(f"is not JSON ({due!r} or the list's end is missing before it); correct it", count + 1)
        if due:
            window.advance(window.at + 1)
            character = window.skip(SPACES)
        if due == "[" and character == "]":
            break
        try:
            content, end = window.parse(within_line=False)
        except ParseError as error:
            raise window.error(window.fault(window.at + error.offset + 1) or str(error), count + 1) from None
        count, line, fault, due = count + 1, window.line, window.fault(end, content), ","
        window.advance(end)
        yield Value(line, count, None if fault else content, fault)
    window.advance(window.at + 1)
