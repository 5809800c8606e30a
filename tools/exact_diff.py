"""Exact diffs: what turns one set of weights into another, bit for bit, compressed.

(tuned - base) + base is not tuned in floating point. So bit patterns are subtracted: those of floats are first mapped
to integers in the order of the values, where neighbours differ by 1; the difference modulo 2^n, zigzagged, is a small
number for a small change, whose upper bytes are nearly all zero. Chunk by chunk the numbers are split into byte planes
and each plane is compressed. Every tensor's sha256 is kept, and that of the base's. Layout: tools/CHECKPOINT.md.

Not a script: tools/weight_diff.py imports it.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tensors import (
    CHUNK,
    FLOATS,
    ITEMSIZE,
    Spec,
    Tensor,
    digest,
    flush,
    from_float32,
    header,
    progress,
    read_safetensors,
    to_float32,
)

DIFF_FILE = "diff.safetensors"
FORMAT = "exact-diff-1"
SIGNED = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")  # sign and magnitude: need the order-preserving map
Compress = Callable[[bytes | np.ndarray], bytes]
Decompress = Callable[[bytes | np.ndarray, int], bytes]


@dataclass(frozen=True)
class Entry:
    """How one tuned tensor is stored: its first `from_base` elements as differences, the others whole."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str  # of the tuned tensor's bytes
    from_base: int  # elements
    base_dtype: str | None = None  # cast to dtype before subtracting where it is another
    base_sha256: str | None = None


@dataclass(frozen=True)
class Diff:
    """An opened exact diff."""

    path: Path
    codec: str
    chunk: int  # elements that are compressed together
    entries: dict[str, Entry]
    payloads: dict[str, Tensor]
    base: str  # fingerprint of all weights of the base
    tuned: str


def codec(name: str) -> tuple[Compress, Decompress]:
    """The two directions of a compression by name: "zstd" (level 1) or "zlib" (level 1)."""
    if name == "zstd":
        try:
            import pyarrow
        except ImportError:
            raise ValueError("zstd comes with pyarrow, which is not installed: pip install pyarrow") from None
        zstd = pyarrow.Codec("zstd", compression_level=1)
        return lambda data: zstd.compress(data, asbytes=True), lambda data, size: zstd.decompress(
            data, size, asbytes=True
        )
    if name == "zlib":
        import zlib

        return lambda data: zlib.compress(data, 1), lambda data, size: zlib.decompressobj().decompress(data, size)
    raise ValueError(f"compression {name!r} is not known here (zstd, zlib); a newer version of tools/ made this diff")


def ordered(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Unsigned integers in the order of the floats' values (-0 just below +0); other types pass unchanged."""
    if dtype not in SIGNED:
        return bits
    width = bits.dtype.itemsize * 8
    sign = bits.dtype.type(1 << (width - 1))
    negative = (bits.view(f"<i{bits.dtype.itemsize}") >> (width - 1)).view(bits.dtype)  # all ones where the sign is set
    return bits ^ (negative | sign)


def unordered(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of `ordered`."""
    if dtype not in SIGNED:
        return numbers
    width = numbers.dtype.itemsize * 8
    sign = numbers.dtype.type(1 << (width - 1))
    negative = (~numbers.view(f"<i{numbers.dtype.itemsize}") >> (width - 1)).view(numbers.dtype)
    return numbers ^ (negative | sign)


def zigzag(numbers: np.ndarray) -> np.ndarray:
    """Small differences of either sign, as two's complement, to small unsigned numbers: 0, -1, 1, -2 to 0, 1, 2, 3."""
    signed = numbers.view(f"<i{numbers.dtype.itemsize}")
    return (numbers << numbers.dtype.type(1)) ^ (signed >> (numbers.dtype.itemsize * 8 - 1)).view(numbers.dtype)


def unzigzag(numbers: np.ndarray) -> np.ndarray:
    one = numbers.dtype.type(1)
    return (numbers >> one) ^ (~(numbers & one) + one)


def subtract(tuned: np.ndarray, base: np.ndarray | None, dtype: str) -> np.ndarray:
    """(planes, elements) uint8, lowest byte first: what is compressed of a chunk of bit patterns."""
    numbers = tuned if base is None else zigzag(ordered(tuned, dtype) - ordered(base, dtype))
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(numbers.size, -1).T)


def add(planes: np.ndarray, base: np.ndarray | None, dtype: str) -> np.ndarray:
    """The bit patterns again; planes as `subtract` gave them."""
    numbers = np.ascontiguousarray(planes.T).view(f"<u{planes.shape[0]}").reshape(-1)
    return numbers if base is None else unordered(ordered(base, dtype) + unzigzag(numbers), dtype)


def cast(bits: np.ndarray, dtype: str, target: str) -> np.ndarray:
    return bits if dtype == target else from_float32(to_float32(bits, dtype), target)


def from_base(tuned: Spec, base: Spec | None) -> int:
    """How many of the tuned tensor's elements, from the first on, have a counterpart in the base.

    Rows added to a matrix have none; nor has a tensor that the base lacks, or whose type is neither the same nor a
    float of the same kind. Raises ValueError where the shapes do not belong together.
    """
    if base is None:
        return 0
    same_rows = len(tuned.shape) == len(base.shape) == 2 and tuned.shape[1] == base.shape[1]
    if tuned.shape != base.shape and not same_rows:
        raise ValueError(
            f"tensor {tuned.name} is {list(base.shape)} in the base and {list(tuned.shape)} in the tuned model; "
            "these two are not one model before and after tuning"
        )
    if tuned.dtype != base.dtype and not (tuned.dtype in FLOATS and base.dtype in FLOATS):
        return 0
    return min(tuned.elements, base.elements)


def encode(tuned: Tensor, base: Tensor | None, start: int, compress: Compress, chunk: int) -> Iterator[bytes]:
    """The payload of one tensor: for each chunk, for each plane, uint32 length and the compressed plane.

    start: as `from_base` gave it. Chunks begin anew there, so that none holds both differences and whole elements.
    """
    pairs = zip(tuned.chunks(chunk, 0, start), base.chunks(chunk, 0, start), strict=True) if base else ()
    differences = (subtract(ours, cast(theirs, base.dtype, tuned.dtype), tuned.dtype) for ours, theirs in pairs if base)
    whole = (subtract(bits, None, tuned.dtype) for bits in tuned.chunks(chunk, start))
    for plane in itertools.chain.from_iterable(itertools.chain(differences, whole)):
        packed = compress(plane)
        yield len(packed).to_bytes(4, "little")
        yield packed


def decode(diff: Diff, name: str, base: Tensor | None) -> Iterator[np.ndarray]:
    """The tuned tensor's bit pattern in chunks. ValueError names file and tensor where the payload is damaged."""
    entry, payload = diff.entries[name], diff.payloads[name]
    _, decompress = codec(diff.codec)
    spec = Spec(name, entry.dtype, entry.shape)
    references = base.chunks(diff.chunk, 0, entry.from_base) if base else iter(())
    position = 0
    bounds = ((0, entry.from_base), (entry.from_base, spec.elements))
    for at, end in ((at, min(at + diff.chunk, high)) for low, high in bounds for at in range(low, high, diff.chunk)):
        planes, before = np.empty((spec.itemsize, end - at), np.uint8), position
        for plane in planes:
            length = int.from_bytes(payload.bits[position : position + 4].tobytes(), "little")
            position += 4 + length
            try:
                plane[:] = np.frombuffer(decompress(payload.bits[position - length : position], plane.size), np.uint8)
            except Exception as error:  # each compression library has its own
                raise ValueError(f"{diff.path}: tensor {name} is damaged ({error}); get it again") from None
        payload.release(before, position)
        reference = next(references) if at < entry.from_base else None
        if base is not None and reference is not None:
            reference = cast(reference, base.dtype, entry.dtype)
        yield add(planes, reference, entry.dtype)
    if position != payload.elements:
        raise ValueError(f"{diff.path}: tensor {name} is damaged (bytes left over); get it again")


def write(
    path: Path,
    tuned: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    hashes: Mapping[str, Mapping[str, str]],
    fingerprints: Mapping[str, str],
    codec_name: str = "zstd",
    chunk: int = CHUNK,
) -> None:
    """Write the diff of two sets of weights into one file.

    hashes, fingerprints: under "tuned" and "base", each tensor's sha256 and that of all weights.
    """
    compress, _ = codec(codec_name)
    entries = {}
    for name, tensor in tuned.items():
        start = from_base(tensor, base.get(name))
        parent = (base[name].dtype, hashes["base"][name]) if start else (None, None)
        entries[name] = Entry(tensor.dtype, tensor.shape, hashes["tuned"][name], start, *parent)
    metadata = {
        "format": FORMAT, "codec": codec_name, "chunk": str(chunk), "base": fingerprints["base"],
        "tuned": fingerprints["tuned"], "tensors": json.dumps({name: asdict(e) for name, e in entries.items()}),
    }  # fmt: skip
    # Sizes are known only afterwards: room for the header is reserved with numbers at least as long as the true ones.
    reserved = header([Spec(name, "U8", (2 * t.nbytes + 10**6,)) for name, t in tuned.items()], metadata)
    with path.open("wb") as file, progress(sum(t.nbytes for t in tuned.values()), "diff") as bar:
        file.write(reserved)
        payloads = []
        for name, tensor in tuned.items():
            before = file.tell()
            for block in encode(tensor, base.get(name), entries[name].from_base, compress, chunk):
                file.write(block)
            payloads.append(Spec(name, "U8", (file.tell() - before,)))
            bar.update(tensor.nbytes)
        final = header(payloads, metadata)
        file.seek(0)
        file.write((len(reserved) - 8).to_bytes(8, "little") + final[8:] + b" " * (len(reserved) - len(final)))
        flush(file)


def read(path: Path) -> Diff:
    """Open an exact diff. ValueError names the file where it is damaged or of another format."""
    payloads, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {metadata.get('format')!r}, not {FORMAT}; newer tools may read it")
    try:
        table = json.loads(metadata["tensors"])
        entries = {name: Entry(**{**entry, "shape": tuple(entry["shape"])}) for name, entry in table.items()}
        diff = Diff(
            path, metadata["codec"], int(metadata["chunk"]), entries, payloads, metadata["base"], metadata["tuned"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has damaged metadata ({error!r}); get it again") from None
    codec(diff.codec)  # refused here, before anything is written
    sound = all(e.dtype in ITEMSIZE and 0 <= e.from_base <= math.prod(e.shape) for e in entries.values())
    if entries.keys() != payloads.keys() or diff.chunk < 1 or not sound:
        raise ValueError(f"{path} has damaged metadata (the table of tensors does not fit); get it again")
    return diff


def check_base(diff: Diff, base: Mapping[str, Tensor], folder: Path) -> None:
    """Hash those tensors of the base that the diff refers to; ValueError names the first that is another."""
    wanted = {name: entry for name, entry in diff.entries.items() if entry.base_sha256 is not None}
    with progress(sum(base[name].nbytes for name in wanted if name in base), "checking the base") as bar:
        for name, entry in wanted.items():
            if name not in base:
                raise ValueError(
                    f"{folder} has no tensor {name}, which {diff.path} refers to; this is not the diff's base"
                )
            if base[name].dtype != entry.base_dtype or digest(base[name]) != entry.base_sha256:
                raise ValueError(
                    f"{folder} is not the base of {diff.path}: tensor {name} differs "
                    f"({base[name].dtype}, made from {entry.base_dtype}); it was made from weights {diff.base[:16]}"
                )
            bar.update(base[name].nbytes)
