"""Parse the JSON values of a byte stream one at a time: objects on one line or several, and the items of lists.

A window of decoded text moves over the stream. If a value does not end in the window, the window grows geometrically
and the value is parsed again, so time is linear in the file size and memory in the size of the largest value.
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
LONGEST_TOKEN = 16  # characters; an error this close to the window's end may come from a token that the end cuts
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, OSError)  # raised while an incomplete file is read
HALF_PAIR = "has half a surrogate pair (\\ud800 to \\udfff), which is not a character; correct it"


class Value(NamedTuple):
    """A value of the stream, or the error at its place."""

    line: int  # the line on which it begins, from 1
    item: int  # its number among all list items of the stream, from 1; 0 outside lists
    content: object
    error: str = ""
    blank: bool = False  # whether this is a blank line


class ParseError(ValueError):
    """No value could be parsed; the parser stopped `offset` characters after the start of the value."""

    def __init__(self, reason: str, offset: int = 0) -> None:
        super().__init__(reason)
        self.offset = offset


class StreamError(ValueError):
    """The rest of the stream cannot be read; `value` holds the line, the item and the reason."""

    def __init__(self, value: Value) -> None:
        super().__init__(value.error)
        self.value = value


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"has the number {word}, which is not JSON; write null")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)  # keeps the last of duplicate keys


def text_decoder(head: bytes) -> codecs.IncrementalDecoder:
    """Return the decoder for a stream that begins with `head` (4 bytes): UTF-8, or UTF-16 with a byte order mark.

    Invalid UTF-8 bytes become lone surrogates. Raises ValueError if another encoding is recognised.
    """
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise ValueError("is UTF-32; convert it to UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return codecs.getincrementaldecoder("utf-16")("surrogatepass")
    if b"\0" in head:
        raise ValueError("is not text, or is UTF-16 without a byte order mark; convert it to UTF-8")
    return codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")


class JsonStream:
    """A window of a stream's decoded text, and the parser's position in it."""

    def __init__(self, stream: BinaryIO) -> None:
        """Raises StreamError if the encoding is not supported."""
        self.stream, self.text, self.at, self.line, self.ended = stream, "", 0, 1, False
        self.has_surrogates = False
        head = self._read(BLOCK)
        try:
            self.decoder = text_decoder(head[:4])
        except ValueError as error:
            raise self.error(str(error)) from None
        self._append(head)

    def error(self, reason: str, item: int = 0) -> StreamError:
        """Return a StreamError for the current line."""
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
        """Read at least as many bytes as the window has characters; return False at the end of the stream."""
        if self.ended:
            return False
        self._append(self._read(max(BLOCK, len(self.text) - self.at)))
        return True

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Move past a match of the pattern; return the next character, or "" at the end of the stream."""
        while True:
            end = pattern.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches empty text too
            if end > self.at:
                self.advance(end)
            if end < len(self.text):
                return self.text[end]
            if not self.grow():
                return ""

    def advance(self, end: int) -> None:
        """Move to index `end` of the window and count the lines on the way."""
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def line_end(self) -> int:
        """Return the index of the end of the present line in the window."""
        searched = 0
        while (end := self.text.find("\n", self.at + searched)) < 0:
            searched = len(self.text) - self.at
            if not self.grow():
                return len(self.text)
        return end

    def parse(self, within_line: bool) -> tuple[object, int]:
        """Return the value that begins here and the index of its end; ParseError if there is none."""
        limit = self.line_end() if within_line else 0
        while True:
            text = self.text[:limit] if within_line else self.text
            complete = within_line or self.ended
            try:
                content, end = DECODER.raw_decode(text, self.at)
                if complete or end < len(text):  # otherwise the window's end may cut a number
                    return content, end
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(text) - LONGEST_TOKEN
                if complete or not cut:
                    raise ParseError(json_fault(error), error.pos - self.at) from None
            except RecursionError:
                raise ParseError("is nested too deep; write it with fewer levels", len(text) - self.at) from None
            except ValueError as error:  # raised for a number
                long = "has an integer of more than 4300 digits; write it as text"
                raise ParseError(long if "integer string" in str(error) else str(error)) from None
            self.grow()

    def fault(self, end: int, content: object = None) -> str:
        """Return the encoding fault of the characters from here to `end`, parsed as `content`; "" if there is none."""
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
    """Return the message for a parser's error."""
    return f"is not JSON ({error.msg.removesuffix(' at')} {excerpt(error.doc, error.pos)}); correct it"


def excerpt(text: str, at: int) -> str:
    """Return a description of a position in a text by its next characters, for messages."""
    return f"at {text[at : at + 20].splitlines()[0]!r}" if text[at : at + 20].strip() else "at the end"


def json_values(stream: BinaryIO, blank_lines: bool = False) -> Iterator[Value]:
    """Yield the values of a stream in order; for a list, its items.

    blank_lines: also yield a Value for each blank line. For a line that is not JSON, a Value with the error is yielded,
    and reading continues on the next line. Raises StreamError if the start of the next value is unknown after an error.
    """
    window = JsonStream(stream)
    at_line_start, items = True, 0
    one_line = within_line = False  # a value ended on the line it began on; every value must do so
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
            if window.at + error.offset > line_end:  # the parser read on to later lines
                if not one_line:
                    raise StreamError(Value(line, 0, None, fault)) from None
                within_line = True
            window.advance(line_end)
        yield Value(line, 0, None if fault else content, fault)


def _list_items(window: JsonStream, count: int) -> Iterator[Value]:
    """Yield the items of the list that begins here, numbered from count + 1; StreamError if one is not JSON."""
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
