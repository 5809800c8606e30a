"""Streamed safetensors: map tensors of a checkpoint folder, write shards in order, hash weights. No torch.

A tensor is its bit pattern: a flat array of unsigned integers of the element's width, so that bfloat16 and 8-bit
floats need no type that numpy lacks, and copying or comparing never rounds. Bytes are mapped, read chunk by chunk, and
dropped again, so memory does not grow with the model. `.bin` files are read through torch.load(weights_only=True).

Not a script: the tools of this stage import it. Format: the safetensors README (8 bytes little-endian header length,
JSON header, data without gaps).
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from folders import read_json
from tqdm import tqdm

CHUNK = 1 << 20  # elements
ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32")  # what arithmetic is done on
TORCH_NAME = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
HEADER_LIMIT = 100_000_000  # bytes, the limit of the format


@dataclass(frozen=True)
class Spec:
    """What a tensor is: name, element type as safetensors spells it, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(frozen=True, eq=False)
class Tensor(Spec):
    """A stored tensor: `bits` is its flat bit pattern, (elements,) of uint8/16/32/64, read from disk when touched."""

    file: Path
    bits: np.ndarray
    mapping: mmap.mmap | None = None
    offset: int = 0  # of the first byte in the mapping

    def chunks(self, elements: int = CHUNK, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Flat pieces of at most `elements`, in order; each one's memory is given back when the next is asked for."""
        stop = self.elements if stop is None else stop
        for at in range(start, stop, elements):
            end = min(at + elements, stop)
            try:
                yield self.bits[at:end]
            finally:
                self.release(at, end)

    def release(self, start: int, stop: int) -> None:
        """Give back the memory of these elements; they are read again when touched again."""
        if self.mapping is not None:
            first = (self.offset + start * self.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
            self.mapping.madvise(mmap.MADV_DONTNEED, first, self.offset + stop * self.itemsize - first)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one file in the order of their bytes, and its metadata; ValueError on a damaged file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
            raise ValueError(f"{path} is no safetensors file or is cut off in its header; get it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            specs = {name: Spec(name, str(entry["dtype"]), tuple(entry["shape"])) for name, entry in header.items()}
            places = sorted(
                (int(start), int(end), name) for name in header for start, end in [header[name]["data_offsets"]]
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has a damaged header ({error!r}); get it again") from None
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    base, position, tensors = 8 + length, 0, {}
    for start, end, name in places:
        spec = specs[name]
        if spec.dtype not in ITEMSIZE:
            raise ValueError(f"{path}: tensor {spec.name} is of type {spec.dtype}, which is not handled here")
        if start != position or end - start != spec.nbytes or min(spec.shape, default=0) < 0:
            raise ValueError(f"{path}: the header's place for tensor {spec.name} does not fit its shape; get it again")
        if base + end > size:
            raise ValueError(
                f"{path} is cut off: tensor {spec.name} ends at byte {base + end:,} of {size:,}; get it again"
            )
        flat = np.frombuffer(mapping, f"<u{spec.itemsize}", spec.elements, base + start)
        tensors[spec.name] = Tensor(spec.name, spec.dtype, spec.shape, path, flat, mapping, base + start)
        position = end
    if base + position != size:
        raise ValueError(f"{path} has {size - base - position:,} bytes after its last tensor; get it again")
    return tensors, metadata


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch state dict; nothing in the file is executed. ValueError where it is not only tensors."""
    import torch

    names = {getattr(torch, name): dtype for dtype, name in TORCH_NAME.items()} | {
        torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
        torch.int64: "I64", torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    }  # fmt: skip
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler stumbles over
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is damaged or holds more than tensors ({reason[:120]}); get it again") from None
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.dtype not in names:
            raise ValueError(f"{path}: {name} is no tensor of a known type; this file is no state dict")
        dtype = names[value.dtype]
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().view(f"<u{ITEMSIZE[dtype]}")
        tensors[name] = Tensor(name, dtype, tuple(value.shape), path, flat)
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; get it again")
    return read_safetensors(path)[0] if path.suffix == ".safetensors" else read_bin(path)


def read_weights(folder: Path, files: Sequence[str] = MODEL_FILES) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, from an index and its shards or from one file, the first of `files` found.

    Raises FileNotFoundError or ValueError that names the file and the tensor: no weights, shard missing, cut off or
    outside the folder, tensor missing from its shard or from the index.
    """
    for name in files:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return read_indexed(index)
        if (folder / name).is_file():
            return read_file(folder / name)
    stem, _, suffix = files[0].partition(".")
    if any(folder.glob(f"{stem}-*.{suffix}")):
        raise FileNotFoundError(f"{folder} has shards but no {files[0]}.index.json; get that file again")
    raise FileNotFoundError(
        f"{folder} has none of {', '.join(files)} (or an index of shards); it is not what is needed here"
    )


def read_indexed(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names, each checked to be in its shard; see read_weights."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map; get it again")
    shards: dict[str, dict[str, Tensor]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index}: tensor {name} is said to be in {file!r}, which is not a file of this folder")
        if file not in shards:
            if not (index.parent / file).is_file():
                raise FileNotFoundError(f"{index.parent / file} is missing (it holds {name}); get it again")
            shards[file] = read_file(index.parent / file)
        if name not in shards[file]:
            raise ValueError(
                f"{index.parent / file} lacks tensor {name}, which {index.name} says it holds; get both again"
            )
    for file, tensors in shards.items():
        for name in tensors:
            if places.get(name) != file:
                raise ValueError(
                    f"{index.parent / file} holds tensor {name}, which {index.name} does not say; get both again"
                )
    return {name: shards[file][name] for name, file in places.items()}


def to_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values of a bit pattern of F16, BF16 or F32; exact."""
    if dtype == "F32":
        return bits.view(np.float32)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Bit pattern of float32 values in F16, BF16 or F32, rounded to nearest, ties to even; NaN stays NaN."""
    if dtype == "F32":
        return values.view(np.uint32)
    if dtype == "F16":
        with np.errstate(over="ignore"):  # beyond 65504 lies infinity, as in torch
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, in hexadecimal."""
    state = hashlib.sha256()
    for chunk in tensor.chunks():
        state.update(chunk.data)
    return state.hexdigest()


def digests(tensors: Mapping[str, Tensor], what: str) -> dict[str, str]:
    """Every tensor's sha256, with a progress bar."""
    result = {}
    with progress(sum(tensor.nbytes for tensor in tensors.values()), what) as bar:
        for name, tensor in tensors.items():
            result[name] = digest(tensor)
            bar.update(tensor.nbytes)
    return result


def fingerprint(tensors: Iterable[Spec], hashes: Mapping[str, str]) -> str:
    """One sha256 for all weights, whatever the shards and their order: over `name dtype shape sha256` lines by name."""
    lines = [json.dumps([t.name, t.dtype, list(t.shape), hashes[t.name]]) + "\n" for t in tensors]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def progress(total: int, what: str) -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False)


def header(tensors: Sequence[Spec], metadata: Mapping[str, str]) -> bytes:
    """A safetensors header with its length in front, padded to 8 bytes; the tensors lie one behind the other."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in tensors:
        end = position + spec.nbytes
        content[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def plan_shards(tensors: Sequence[Spec], limit: int) -> list[list[Spec]]:
    """Consecutive runs of tensors of at most `limit` bytes each (a larger tensor gets a shard of its own)."""
    shards: list[list[Spec]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_shards(
    folder: Path,
    tensors: Sequence[Spec],
    produce: Callable[[Spec], Iterable[np.ndarray]],
    limit: int,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write model.safetensors, or its shards and index, tensor by tensor in the order given; returns their sha256.

    produce: gives a tensor's bit pattern in flat chunks.
    """
    shards = plan_shards(tensors, limit)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    hashes: dict[str, str] = {}
    with progress(sum(tensor.nbytes for tensor in tensors), folder.name.removesuffix(".partial")) as bar:
        for name, shard in zip(names, shards, strict=True):
            with (folder / name).open("wb") as file:
                file.write(header(shard, {"format": "pt", **(metadata or {})}))
                for spec in shard:
                    state, written = hashlib.sha256(), 0
                    for chunk in produce(spec):
                        file.write(chunk.data)
                        state.update(chunk.data)
                        written += chunk.nbytes
                        bar.update(chunk.nbytes)
                    assert written == spec.nbytes, f"{spec.name}: {written} bytes produced for {spec.nbytes}"
                    hashes[spec.name] = state.hexdigest()
                flush(file)
    if len(shards) > 1:
        places = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return hashes


def flush(file: Any) -> None:
    """Have the file on the disk, not only in memory, before its folder is given its final name."""
    file.flush()
    os.fsync(file.fileno())
