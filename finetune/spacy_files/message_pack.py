"""Read MessagePack data step by step, so that only the requested parts become Python objects.

Source: the specification of MessagePack, https://github.com/msgpack/msgpack/blob/master/spec.md. Damaged or hostile
data (huge sizes, deep nesting) raises MessagePackError; no step allocates more memory than the data has bytes.
"""

import struct
from typing import NamedTuple

# Type code -> kind of the value, and bytes of the size that follows the code.
SIZED = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4),
    0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
NUMBERS = {  # type code -> form for struct
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
CONSTANTS: dict[int, bool | None] = {0xC0: None, 0xC2: False, 0xC3: True}


class MessagePackError(ValueError):
    """The data is not the expected MessagePack data."""


class Header(NamedTuple):
    """The beginning of a value. kind: "text", "bytes", "array", "map", "extension" or "value"."""

    kind: str
    size: int  # bytes of a text, bytes or extension; items of an array; pairs of a map; else 0
    value: int | float | bool | None = None  # of the kind "value"


class MessagePackReader:
    """A position in MessagePack data. Each method reads the next value or raises MessagePackError."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = memoryview(data), 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes and move past them."""
        if size > len(self.data) - self.at:
            raise MessagePackError("it ends within a value")
        self.at += size
        return self.data[self.at - size : self.at]

    def header(self) -> Header:
        """Return the beginning of the next value and move past it."""
        code = self.take(1)[0]
        if code <= 0x7F or code >= 0xE0:
            return Header("value", 0, code if code <= 0x7F else code - 0x100)
        if code <= 0xBF:
            kind = "map" if code <= 0x8F else "array" if code <= 0x9F else "text"
            return Header(kind, code & (0x1F if kind == "text" else 0x0F))
        if code in NUMBERS:
            form = NUMBERS[code]
            return Header("value", 0, struct.unpack(form, self.take(struct.calcsize(form)))[0])
        if code in CONSTANTS:
            return Header("value", 0, CONSTANTS[code])
        if 0xD4 <= code <= 0xD8:
            return Header("extension", 1 + (1 << (code - 0xD4)))
        if code not in SIZED:
            raise MessagePackError("it has an unknown type of value")
        kind, bytes_of_size = SIZED[code]
        size = int.from_bytes(self.take(bytes_of_size), "big")
        return Header(kind, size + 1 if kind == "extension" else size)  # an extension's type is one byte

    def size_of(self, kind: str) -> int:
        """Return the number of items of the array, or of pairs of the map, that begins here, and move to its items."""
        header = self.header()
        if header.kind != kind:
            raise MessagePackError(f"it has a value of the kind {header.kind!r} in place of {kind!r}")
        return header.size

    def text(self) -> str:
        """Return the next value, a text."""
        try:
            return str(self.take(self.size_of("text")), "utf-8")
        except UnicodeDecodeError:
            raise MessagePackError("it has a text that is not UTF-8") from None

    def raw(self) -> memoryview:
        """Return the next value, bytes, without a copy."""
        return self.take(self.size_of("bytes"))

    def value(self) -> int | float | bool | None:
        """Return the next value, a number, true, false or nil."""
        header = self.header()
        if header.kind != "value":
            raise MessagePackError(f"it has a value of the kind {header.kind!r} in place of a number")
        return header.value

    def skip(self) -> None:
        """Move past the next value and all values in it."""
        values = 1
        while values:
            header = self.header()
            values -= 1
            if header.kind in ("array", "map"):
                values += header.size * (2 if header.kind == "map" else 1)
            else:
                self.take(header.size)
