"""Decompress .gz and .zst files. A damaged file yields all content before the damage, and then the error.

A decompressor that meets the damage within a call raises an error, and discards the content that it has already
decompressed in this call (up to a block). The content is therefore read again in smaller steps.
"""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO

COMPRESSED = (".gz", ".zst")
READ_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, OSError)  # raised on reading a damaged or incomplete file
STEPS = (1 << 16, 1 << 8, 1)  # bytes of content per read; each step is used until a read fails


def decompressed_file(file: BinaryIO, path: Path) -> BinaryIO:
    """Return the open file, or for a name that ends in .gz or .zst, a file object that decompresses it."""
    if path.suffix.lower() not in COMPRESSED:
        return file
    return io.BufferedReader(_DecompressedContent(file, path.suffix.lower()), STEPS[0])


class _DecompressedContent(io.RawIOBase):
    """The decompressed content of an open file; reading raises one of READ_ERRORS after the last undamaged byte."""

    def __init__(self, file: BinaryIO, suffix: str) -> None:
        super().__init__()
        self.suffix, self.source = suffix, _CompressedBytes(file)
        self.stream = self.open_stream()
        self.delivered = 0  # bytes of content
        self.error: BaseException | None = None
        self.before_damage = b""  # content that is delivered before the error is raised

    def readable(self) -> bool:
        return True

    def open_stream(self) -> Any:
        if self.suffix == ".gz":
            return gzip.GzipFile(fileobj=self.source, mode="rb")  # type: ignore[call-overload]  # reading calls only read()
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(self.source, "r"), "zstd")

    def readinto(self, buffer: Any) -> int:
        """Read content into a buffer; return the number of bytes, 0 at the end."""
        if self.error is None:
            try:
                data = self.stream.read(len(buffer))
            except READ_ERRORS as error:
                self.error, self.before_damage = error, self.read_before_damage()
        if self.error is not None:
            if not self.before_damage:
                raise self.error
            data, self.before_damage = self.before_damage[: len(buffer)], self.before_damage[len(buffer) :]
        buffer[: len(data)] = data
        self.delivered += len(data)
        return len(data)

    def read_before_damage(self) -> bytes:
        """Return the content between the delivered bytes and the damage.

        Decompresses the file again from its beginning, once for each of STEPS. The last step requests single bytes of
        content, so that the failing call discards none. From the file position of the failed call's last read on,
        the decompressor gets single compressed bytes.
        """
        self.source.single_bytes_from = self.source.last_read
        content = bytearray()
        for step in STEPS:
            self.source.file.seek(0)
            stream = self.open_stream()
            try:
                known = self.delivered + len(content)
                while known:
                    known -= len(stream.read(min(known, STEPS[0])))
                while data := stream.read(step):
                    content += data
            except READ_ERRORS:
                continue
        return bytes(content)


class _CompressedBytes:
    """An open file for a decompressor; from the position `single_bytes_from` on, it returns one byte per call."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.last_read = file, 0  # last_read: position of the last read that returned bytes
        self.single_bytes_from: int | None = None

    def read(self, size: int = -1) -> bytes:
        at = self.file.tell()
        if self.single_bytes_from is not None:
            size = 1 if at >= self.single_bytes_from else min(size, self.single_bytes_from - at)
        data = self.file.read(size)
        self.last_read = at if data else self.last_read
        return data

    def close(self) -> None:
        """Leave the file open, as its owner closes it; pyarrow's streams call this method at their end."""
