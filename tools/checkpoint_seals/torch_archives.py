"""Hash the file that torch.save wrote before PyTorch 2.1, without writing it.

The file is a zip archive with the records data.pkl, then data/0, data/1, … in string order, then version. PyTorch 2.1
added the records byteorder and .data/serialization_id. Each record is stored uncompressed and begins at a multiple of
64 bytes; its CRC-32 follows it. The end records are always in ZIP64 form, other structures only for offsets from
2^32 - 1 on. Sources: torch/serialization.py, caffe2/serialize/inline_container.cc and miniz.c of PyTorch 1.13.
"""

import hashlib
import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any
from zlib import crc32

from checkpoint_io.tensors import BLOCK, Tensor

ALIGNMENT = 64  # bytes
LIMIT = 2**32 - 1  # offsets from this on are in ZIP64 fields
FLAGS = 0x0808  # sizes and CRC-32 follow the record; the name is UTF-8
EMPTY_FLAGS = 0x0800  # no sizes and CRC-32 follow an empty record
STORAGE = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


class Storage:
    """A stand-in for the storage of a tensor, which is pickled as a persistent id."""

    def __init__(self, key: str, tensor: Tensor) -> None:
        self.key, self.tensor = key, tensor


class PickledTensor:
    """A stand-in that is pickled like a contiguous torch.Tensor with its own storage."""

    def __init__(self, key: str, tensor: Tensor) -> None:
        self.storage, self.shape = Storage(key, tensor), tensor.shape

    def __reduce__(self) -> tuple[Any, ...]:
        from torch._utils import _rebuild_tensor_v2

        strides, step = [], 1
        for size in reversed(self.shape):
            strides.append(step)
            step *= max(1, size)
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, tuple(reversed(strides)), False, OrderedDict())


class StatePickler(pickle.Pickler):
    """A pickler that writes a state dict as torch.save does, with a reference to the record of each storage."""

    def persistent_id(self, value: object) -> Any:
        if not isinstance(value, Storage):
            return None
        import torch

        kind = getattr(torch, STORAGE[value.tensor.dtype])
        return ("storage", kind, value.key, "cpu", value.tensor.elements)


class ArchiveHash:
    """The MD5 of a zip archive whose records are given one after another."""

    def __init__(self, folder: str) -> None:
        """Start an empty archive. folder: folder of its records, in torch.save the file name without its suffix."""
        self.folder, self.md5, self.position = folder, hashlib.md5(), 0
        self.entries: list[bytes] = []  # entries of the central directory

    def write(self, content: Any) -> None:
        self.md5.update(content)
        self.position += memoryview(content).nbytes

    def add(self, record: str, size: int, chunks: Iterable[Any]) -> None:
        """Add a record of `size` bytes (less than 4 GiB)."""
        name, offset, crc = f"{self.folder}/{record}".encode(), self.position, 0
        zip64 = struct.pack("<HHQ", 1, 8, offset) if offset >= LIMIT else b""
        flags = FLAGS if size else EMPTY_FLAGS
        padding = -(offset + 30 + len(name) + len(zip64) + 4) % ALIGNMENT
        extra = zip64 + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        self.write(struct.pack("<IHHHIIIIHH", 0x04034B50, 0, flags, 0, 0, 0, 0, 0, len(name), len(extra)))
        self.write(name + extra)
        for chunk in chunks:
            crc = crc32(chunk, crc)
            self.write(chunk)
        if size:
            self.write(struct.pack("<IIQQ" if zip64 else "<IIII", 0x08074B50, crc, size, size))
        sizes = struct.pack("<IIIHH", crc, size, size, len(name), len(zip64))
        header = struct.pack("<IHHHHI", 0x02014B50, 0, 0, flags, 0, 0) + sizes
        self.entries.append(header + struct.pack("<HHHII", 0, 0, 0, 0, min(offset, LIMIT)) + name + zip64)

    def hexdigest(self) -> str:
        """Write the central directory; return the hash of the archive."""
        count, start, directory = len(self.entries), self.position, b"".join(self.entries)
        self.write(directory)
        end = self.position
        self.write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 0x031E, 45, 0, 0, count, count, len(directory), start))
        self.write(struct.pack("<IIQI", 0x07064B50, 0, end, 1))
        place = (min(len(directory), LIMIT), min(start, LIMIT))
        self.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, *place, 0))
        return self.md5.hexdigest()


def archive_md5(stem: str, tensors: Sequence[Tensor]) -> str:
    """Return the MD5 of the file `<stem>.bin` that torch.save wrote for {tensor.name: tensor, …}."""
    buffer = BytesIO()
    StatePickler(buffer, 2).dump({tensor.name: PickledTensor(str(key), tensor) for key, tensor in enumerate(tensors)})
    archive = ArchiveHash(stem)
    archive.add("data.pkl", buffer.tell(), [buffer.getvalue()])
    for key in sorted(map(str, range(len(tensors)))):
        tensor = tensors[int(key)]
        archive.add(f"data/{key}", tensor.nbytes, (chunk.data for chunk in tensor.chunks(BLOCK // tensor.itemsize)))
    archive.add("version", 2, [b"3\n"])
    return archive.hexdigest()
