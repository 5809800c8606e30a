"""Read the metadata and the tensor table of a GGUF file; every size and offset is checked against the file's size.

A file consists of the magic number, the version, the numbers of tensors and metadata entries, the entries (key, type,
value), the tensor table (name, dimensions, type, offset), and the aligned tensors. Format: docs/gguf.md of the ggml
project, versions 2 and 3, little-endian. The gguf package's own reader is not used, because it takes seconds for a
tokenizer and does not check sizes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9  # value types
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
ENTRIES_LIMIT, TENSORS_LIMIT = 1 << 16, 1 << 16
ITEMS_LIMIT = 1 << 22  # items of an array; the largest vocabularies have 2^18 tokens and 2^19 merges
STRING_LIMIT = 1 << 24  # bytes
HEADER_LIMIT = 1 << 28  # bytes
DIMENSIONS_LIMIT = 4  # ggml's limit
READ_AT_ONCE = 1 << 20  # bytes
TENSOR_TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS",
)  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file."""

    name: str
    kind: str  # one of TENSOR_TYPES
    shape: tuple[int, ...]  # rows first, as in PyTorch
    offset: int  # position of the first byte in the file
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file: `metadata` by key (arrays of numbers as numpy arrays), `tensors` by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    state: tuple[int, int]  # `file_state` when the header was read

    def check_unchanged(self) -> None:
        """Raise ValueError if the file was changed after its header was read."""
        if file_state(self.path) != self.state:
            raise ValueError(f"{self.path} was changed while it was read; run the command again")


def file_state(path: Path) -> tuple[int, int]:
    """Return a file's size and modification time in nanoseconds."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class UnsupportedError(ValueError):
    """Raised for an intact file that has an unsupported property."""


class HeaderReader:
    """Read numbers and strings from a file; ValueError if the file ends too early or a number exceeds its limit."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self.source, self.remaining = source, min(size, HEADER_LIMIT)
        self.is_long = size > HEADER_LIMIT

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        if size > self.remaining:
            reason = f"the header is longer than {HEADER_LIMIT >> 20} MiB" if self.is_long else "the file is cut off"
            raise ValueError(reason)
        self.remaining -= size
        content = self.source.read(size)
        if len(content) != size:
            raise ValueError("the file is cut off")
        return content

    def number(self, dtype: str) -> Any:
        """Return the next number of a numpy type such as "<u4"."""
        content = self.take(np.dtype(dtype).itemsize)
        return np.frombuffer(content, dtype)[0].item()

    def count(self, limit: int, name: str, dtype: str = "<u8") -> int:
        """Return the next number; ValueError if it exceeds `limit`. name: the counted things, for the message."""
        number = int(self.number(dtype))
        if number > limit:
            raise ValueError(f"it declares {number:,} {name}, more than {limit:,}")
        return number

    def string(self) -> str:
        """Return the next string: its length (uint64), then UTF-8."""
        size = int.from_bytes(self.take(8), "little")  # for a vocabulary, `number` would take most of the time
        if size > STRING_LIMIT:
            raise ValueError(f"it declares {size:,} bytes of a string, more than {STRING_LIMIT:,}")
        return self.take(size).decode()

    def value(self) -> Any:
        """Read a type number (uint32) and return its value: a number, a bool, a string or an array of these."""
        kind = self.number("<u4")
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"a value has the type {kind}, which is unknown")
        kind, count = self.number("<u4"), self.count(ITEMS_LIMIT, "items of an array")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"an array has items of type {kind}, which is not supported")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def read_gguf(path: Path) -> GgufFile:
    """Return the header of a GGUF file.

    Raises FileNotFoundError if the file does not exist, and ValueError if it is not a GGUF file of a supported version
    and byte order, is cut off or damaged, or has a tensor of an unsupported type.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'device or pipe'}; --gguf takes a GGUF file")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --gguf takes a GGUF file")
    state = size, _ = file_state(path)
    with path.open("rb", READ_AT_ONCE) as source:
        reader = HeaderReader(source, size)
        with damage_reported(path):
            if reader.take(4) != MAGIC:
                raise ValueError("it does not begin with GGUF")
            version = reader.number("<u4")
            if version not in VERSIONS:
                is_swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
                fact = "it is big-endian" if is_swapped else f"it has version {version}"
                raise UnsupportedError(f"{fact}; only little-endian files of versions 2 and 3 are supported")
            tensor_count = reader.count(TENSORS_LIMIT, "tensors")
            metadata: dict[str, Any] = {}
            for _ in range(reader.count(ENTRIES_LIMIT, "metadata entries")):
                key = reader.string()
                if key in metadata:
                    raise ValueError(f"the metadata has {key[:80]} twice")
                metadata[key] = reader.value()
            entries = [read_table_entry(reader) for _ in range(tensor_count)]
            position, alignment = source.tell(), metadata.get("general.alignment", 32)
            if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
                raise ValueError(f"general.alignment is {str(alignment)[:80]}, not a power of two")
            start = position + -position % alignment
            tensors = [locate_tensor(*entry, start=start, alignment=alignment, size=size) for entry in entries]
            check_table(tensors)
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in tensors}, state)


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Add the file and a remedy to the message of a ValueError that is raised in the block."""
    try:
        yield
    except UnsupportedError as error:
        raise ValueError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is damaged: a string is not UTF-8; download it again") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a GGUF file that can be read: {error}; download it again") from None


def read_table_entry(reader: HeaderReader) -> tuple[str, tuple[int, ...], int, int]:
    """Return the next entry of the tensor table: name, shape (rows first), type number, relative offset."""
    name = reader.string()
    dimensions = reader.count(DIMENSIONS_LIMIT, f"dimensions of {name[:80]}", "<u4")
    shape = tuple(int(reader.number("<u8")) for _ in range(dimensions))[::-1]
    return name, shape, reader.number("<u4"), reader.number("<u8")


def locate_tensor(
    name: str, shape: tuple[int, ...], type_number: int, relative: int, start: int, alignment: int, size: int
) -> StoredTensor:
    """Return a tensor with its place in the file.

    relative: offset from `start`, the position of the tensor data; size: bytes of the file. Raises ValueError for an
    unsupported type, and for a shape or offset that does not fit the type, the alignment or the file.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = {each.value: each.name for each in GGMLQuantizationType}.get(type_number, "")
    if kind not in TENSOR_TYPES:
        raise UnsupportedError(f"tensor {name[:80]} has the type {type_number}; supported: {', '.join(TENSOR_TYPES)}")
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]  # weights and bytes of a block
    if not shape or 0 in shape or shape[-1] % block:
        raise ValueError(f"tensor {name[:80]} has the shape {list(shape)}, which type {kind} cannot have")
    nbytes = math.prod(shape) // block * block_bytes
    if relative % alignment:
        raise ValueError(f"tensor {name[:80]} is not aligned to {alignment} bytes")
    if start + relative + nbytes > size:
        raise ValueError(f"tensor {name[:80]} ends after the end of the file, which is cut off")
    return StoredTensor(name, kind, shape, start + relative, nbytes)


def check_table(tensors: list[StoredTensor]) -> None:
    """Raise ValueError for a name that occurs twice, or tensors that overlap."""
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    for one, other in pairwise(sorted(tensors, key=lambda tensor: tensor.offset)):
        if one.offset + one.nbytes > other.offset:
            raise ValueError(f"tensors {one.name[:80]} and {other.name[:80]} overlap")
