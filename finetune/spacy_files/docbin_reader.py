"""Read the tokens and entities of a DocBin, which spaCy 3 (3.8) writes as .spacy files.

A DocBin is zlib-compressed MessagePack (spacy/tokens/_serialize.py): a table of 64-bit numbers with a row per token of
all documents and a column per attribute, the strings behind these numbers, a space flag per token, and the length of
each document. Span groups (doc.spans) are MessagePack in MessagePack, with a packed struct for each span.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spacy_files.message_pack import MessagePackError, MessagePackReader
from spacy_files.string_hashes import NUMBERS, string_hash

MOST_BYTES = 1 << 30  # of decompressed data; documents of about 50 million words
BLOCK_BYTES = 1 << 20
SPAN_STRUCT = struct.Struct(">QQQllll")  # id, knowledge base id, label, first token, end token, start and end character
IOB = "-IOB"  # the letters of ENT_IOB's values; 0: not annotated


class SpacyDocument(NamedTuple):
    """A document: tokens, whether a space follows each, and its annotations in token indices."""

    tokens: list[str]
    spaces: list[bool] | None  # None if the spaces are not known
    tags: list[tuple[str, str]] | None  # (I, O, B or "-", type) of each token; None if no entities are annotated
    groups: list[tuple[str, int, int]] | None  # (type, first, end) of each span of doc.spans; None without groups


def is_docbin(path: Path) -> bool:
    """Return whether a file is zlib-compressed and its content begins with a MessagePack map."""
    with path.open("rb") as file:
        data = file.read(1 << 10)
    if len(data) < 2 or data[0] & 0x0F != 8 or int.from_bytes(data[:2], "big") % 31:
        return False
    try:
        return 0x80 <= zlib.decompressobj().decompress(data, 1)[0] <= 0x8F
    except (zlib.error, IndexError):
        return False


def read_docbin(path: Path) -> Iterator[SpacyDocument]:
    """Yield the documents of a file.

    Raises ValueError with the file if it is damaged or its content has more than MOST_BYTES.
    """
    try:
        content = read_parts(MessagePackReader(decompressed(path)))
        documents = documents_of(content)
        yield from documents
    except (MessagePackError, zlib.error) as error:
        raise ValueError(f"{path} is not an undamaged DocBin ({error}); write it again with spaCy 3") from None


def decompressed(path: Path) -> bytes:
    """Return the decompressed content of a file. The size is checked first, in constant memory."""
    data, size = path.read_bytes(), 0
    decompressor = zlib.decompressobj()
    rest = data
    while not decompressor.eof:
        block = decompressor.decompress(rest, BLOCK_BYTES)
        rest, size = decompressor.unconsumed_tail, size + len(block)
        if size > MOST_BYTES:
            raise ValueError(
                f"{path} has more than {MOST_BYTES:,} bytes when it is decompressed; split it into several files"
            )
        if not block and not rest and not decompressor.eof:
            raise MessagePackError("it ends within the compressed data")
    return zlib.decompressobj().decompress(data)


def read_parts(reader: MessagePackReader) -> dict[str, Any]:
    """Return the parts of a DocBin that hold tokens and entities; raises MessagePackError."""
    parts: dict[str, Any] = {}
    for _ in range(reader.size_of("map")):
        key = reader.text()
        if key in ("tokens", "spaces", "lengths"):
            parts[key] = reader.raw()
        elif key == "attrs":
            parts[key] = [reader.value() for _ in range(reader.size_of("array"))]
        elif key == "strings":
            strings = (reader.text() for _ in range(reader.size_of("array")))
            parts[key] = {string_hash(text): text for text in strings} | {0: ""}
        elif key == "span_groups":
            parts[key] = [reader.raw() for _ in range(reader.size_of("array"))]
        elif key == "flags":
            parts[key] = [has_unknown_spaces(reader) for _ in range(reader.size_of("array"))]
        else:
            reader.skip()
    missing = {"tokens", "spaces", "lengths", "attrs", "strings"} - set(parts)
    if missing:
        raise MessagePackError(f"it has no {', '.join(sorted(missing))}")
    return parts


def has_unknown_spaces(reader: MessagePackReader) -> bool:
    """Return whether the flags of a document say that its spaces are not known."""
    flags = {reader.text(): reader.value() for _ in range(reader.size_of("map"))}
    return bool(flags.get("has_unknown_spaces"))


def documents_of(parts: dict[str, Any]) -> Iterator[SpacyDocument]:
    """Yield the documents of the parts of a DocBin; raises MessagePackError if they contradict each other."""
    import numpy as np

    attributes, strings = parts["attrs"], parts["strings"]
    if NUMBERS["ORTH"] not in attributes or len(parts["tokens"]) % (8 * len(attributes)) or len(parts["lengths"]) % 4:
        raise MessagePackError("its table of tokens is incomplete")
    table = np.frombuffer(parts["tokens"], "<u8").reshape(-1, len(attributes))  # (tokens, attributes)
    lengths = np.frombuffer(parts["lengths"], "<i4").tolist()
    if min(lengths, default=0) < 0 or sum(lengths) != len(table) or len(parts["spaces"]) != len(table):
        raise MessagePackError("its documents do not have as many tokens as its table")
    columns = {
        name: attributes.index(NUMBERS[name]) for name in ("ORTH", "ENT_IOB", "ENT_TYPE") if NUMBERS[name] in attributes
    }
    flags, groups = parts.get("flags", []), parts.get("span_groups", [])
    begin = 0
    for number, length in enumerate(lengths):
        rows = table[begin : begin + length]
        spaces = (
            None if number < len(flags) and flags[number] else list(map(bool, parts["spaces"][begin : begin + length]))
        )
        tags = None
        if "ENT_IOB" in columns and "ENT_TYPE" in columns and rows[:, columns["ENT_IOB"]].any():
            letters, types = rows[:, columns["ENT_IOB"]].tolist(), rows[:, columns["ENT_TYPE"]].tolist()
            if max(letters) >= len(IOB):
                raise MessagePackError("it has an unknown value of ENT_IOB")
            tags = [(IOB[letter], string_of(label, strings)) for letter, label in zip(letters, types, strict=True)]
        tokens = [string_of(orth, strings) for orth in rows[:, columns["ORTH"]].tolist()]
        spans = span_groups(groups[number], strings) if number < len(groups) else None
        yield SpacyDocument(tokens, spaces, tags, spans)
        begin += length


def string_of(number: int, strings: dict[int, str]) -> str:
    """Return the string of a number; raises MessagePackError."""
    try:
        return strings[number]
    except KeyError:
        raise MessagePackError(f"it lacks the string of the number {number}") from None


def span_groups(data: memoryview, strings: dict[int, str]) -> list[tuple[str, int, int]] | None:
    """Return (type, first token, end token) of the spans in all groups of a document; None if it has no groups.

    The groups are a map from group to names, in versions before 3.4 a list of groups.
    """
    if not data:
        return None
    reader = MessagePackReader(bytes(data))
    header = reader.header()
    if header.kind not in ("map", "array"):
        raise MessagePackError("its span groups are not a map")
    spans = []
    for _ in range(header.size):
        group = MessagePackReader(bytes(reader.raw()))
        for _ in range(group.size_of("map")):
            if group.text() != "spans":
                group.skip()
                continue
            for _ in range(group.size_of("array")):
                packed = group.raw()
                if len(packed) != SPAN_STRUCT.size:
                    raise MessagePackError("it has a span of another size")
                _, _, label, first, end, _, _ = SPAN_STRUCT.unpack(packed)
                spans.append((string_of(label, strings), first, end))
        if header.kind == "map":
            reader.skip()
    return spans if header.size else None
