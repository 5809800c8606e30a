"""Read and hash the tensors of checkpoint folders chunk by chunk, with little memory.

A tensor is represented by its bit patterns: a flat array of unsigned integers of the element's width, because numpy has
no bfloat16 or 8-bit floats, and copying and comparing must not round. safetensors files are read without torch. `.bin`
and `.pth` files are read through torch.load(weights_only=True), which maps them into memory, except files from before
PyTorch 1.6.

Format: the safetensors README (8 bytes little-endian header length, JSON header, contiguous data).
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
from blake3 import blake3
from model_folders.diff_recognition import refuse_diff
from model_folders.weight_files import weight_files
from tqdm import tqdm

from checkpoint_io.bit_patterns import FLOATS
from checkpoint_io.checkpoint_folders import config_number, read_json
from checkpoint_io.ordered_parallel import in_order

CHUNK = 1 << 18  # elements
CACHE_UNIT = 1 << 23  # bytes; pages are dropped from the page cache in units of this size
BLOCK = 1 << 21  # bytes hashed at once
ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
TORCH_NAME = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
MODEL_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
DIFF_FILES = ("diff.safetensors",)  # exact diffs
# Masks of magnitude and exponent; a value with all exponent bits set is infinite or NaN.
FLOAT_MASKS = {"F16": (0x7FFF, 0x7C00), "BF16": (0x7FFF, 0x7F80), "F32": (0x7FFFFFFF, 0x7F800000)}
UNIFORM_TYPES = ("llama", "mistral", "qwen2", "qwen3")  # model types whose layers all have the same tensors
# Constants that old checkpoints contain although a model computes them: rotary frequencies, tables of their sines and
# cosines, the value of masked scores, positions. The causal mask of GPT-2, GPT-J and GPT-NeoX is named attn.bias or
# attention.bias and has four dimensions.
BUFFER = re.compile(r"(?:.*\.)?(?:(?:original_)?inv_freq|cos_cached|sin_cached|masked_bias|position_ids)")
MASK = re.compile(r".*\.(?:attn|attention)\.bias")
LAYER = re.compile(r"model\.layers\.\d+\.(.+)")  # group 1: the kind of tensor


@dataclass(frozen=True)
class Spec:
    """A tensor's name, element type in safetensors' spelling, and shape."""

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

    @property
    def row_step(self) -> int:
        """Return the number of elements in as many whole rows as fit into CHUNK, at least one row."""
        columns = max(1, self.shape[-1]) if len(self.shape) > 1 else 1
        return max(1, CHUNK // columns) * columns

    def row_ranges(self) -> list[tuple[int, int]]:
        """Return consecutive ranges of elements that cover whole rows, of at most `row_step` elements each."""
        return ranges(self.elements, self.row_step)


@dataclass(frozen=True, eq=False)
class Tensor(Spec):
    """A stored tensor, on disk or in memory; several threads may read it at once."""

    file: Path
    source: FileIO | np.ndarray  # an open file, or the flat bit patterns themselves
    offset: int = 0  # position of the first byte in the file

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the bits of elements start to stop, (stop - start,) unsigned; ValueError if the file is truncated."""
        stop = self.elements if stop is None else stop
        assert 0 <= start <= stop <= self.elements, f"{start} to {stop} is not within {self.name}"
        if isinstance(self.source, np.ndarray):
            return self.source[start:stop]
        bits = np.empty(stop - start, f"<u{self.itemsize}")
        view, position = bits.data.cast("B"), self.offset + start * self.itemsize
        while view:
            size = os.preadv(self.source.fileno(), [view], position)
            if not size:
                raise ValueError(f"{self.file} was truncated while tensor {self.name} was read; copy it again")
            view, position = view[size:], position + size
        return bits

    def read_once(self, start: int, stop: int) -> np.ndarray:
        """Like `read`, for a single sequential pass: also frees the page cache of the parts that were read before."""
        bits, last = self.read(start, stop), self.offset + stop * self.itemsize
        if not isinstance(self.source, np.ndarray) and (last - bits.nbytes) // CACHE_UNIT < last // CACHE_UNIT:
            end = (last // CACHE_UNIT - 1) * CACHE_UNIT  # other threads may still be reading later pages
            first = max(self.offset, end - 2 * CACHE_UNIT)
            if end > first:
                os.posix_fadvise(self.source.fileno(), first, end - first, os.POSIX_FADV_DONTNEED)
        return bits

    def chunks(self, elements: int = CHUNK, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield the bit patterns in chunks of at most `elements`, in order."""
        for first, last in ranges(self.elements if stop is None else stop, elements, start):
            yield self.read(first, last)


def ranges(stop: int, size: int, start: int = 0) -> list[tuple[int, int]]:
    """Return [(first, last)] of consecutive ranges of at most `size` from start to stop; `last` is exclusive."""
    return [(at, min(at + size, stop)) for at in range(start, stop, size)]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return a safetensors file's tensors in file order; ValueError if it is damaged or has an unsupported type.

    The safetensors library verifies the header: the tensors cover the file without gaps, and each shape fits its bytes.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as stored:
            slices = [(name, stored.get_slice(name)) for name in stored.offset_keys()]
            specs = [Spec(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices]
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or damaged ({error}); download it again") from None
    source, tensors = FileIO(path), {}
    position = 8 + int.from_bytes(source.read(8), "little")  # after the header
    for spec in specs:
        if spec.dtype not in ITEMSIZE:
            raise ValueError(
                f"{path}: tensor {spec.name} has the unsupported type {spec.dtype}; use weights in F16, BF16 or F32"
            )
        tensors[spec.name] = Tensor(spec.name, spec.dtype, spec.shape, path, source, position)
        position += spec.nbytes
    return tensors


def read_bin(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch state dict without executing code; ValueError if the file has other content."""
    import torch

    names = {getattr(torch, name): dtype for dtype, name in TORCH_NAME.items()} | {
        torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
        torch.int64: "I64", torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    }  # fmt: skip
    try:
        # files from before PyTorch 1.6 are not zip archives and cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # the unpickler raises many exception types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is damaged or holds more than tensors ({reason[:120]}); download it again") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict; use a state dict of weights")
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.dtype not in names:
            raise ValueError(f"{path}: {name} is not a tensor of a known type; use a state dict of weights")
        dtype = names[value.dtype]
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().view(f"<u{ITEMSIZE[dtype]}")
        tensors[name] = Tensor(name, dtype, tuple(value.shape), path, flat)
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; download it again")
    return read_safetensors(path) if path.suffix == ".safetensors" else read_bin(path)


def has_weights(folder: Path, files: Sequence[str]) -> bool:
    """Return whether a folder has one of the files or its shard index."""
    return any((folder / name).is_file() for file in files for name in (file, f"{file}.index.json"))


def read_weights(folder: Path, files: Sequence[str] = MODEL_FILES) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint folder, from the first of `files` that exists as one file or as a shard index.

    Raises FileNotFoundError or ValueError, naming the file and the tensor, if there are no weights, a shard is missing,
    truncated or outside the folder, a tensor is missing from its shard or from the index, or the folder has a second
    set of weights or an adapter beside its model.
    """
    if MODEL_FILES[0] in files:
        weight_files(folder)  # raises for a second set
    for name in files:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return read_indexed(index)
        if (folder / name).is_file():
            return read_file(folder / name)
    stem, _, suffix = files[0].partition(".")
    if any(folder.glob(f"{stem}-*.{suffix}")):
        raise FileNotFoundError(f"{folder} has shards but no {files[0]}.index.json; download that file again")
    raise FileNotFoundError(
        f"{folder} has none of {', '.join(files)} (or an index of shards); give a folder with such weights"
    )


def read_indexed(index: Path) -> dict[str, Tensor]:
    """Return the tensors listed in a shard index; raises as `read_weights`."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map; download it again")
    shards: dict[str, dict[str, Tensor]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index}: tensor {name} is listed in {file!r}, which is not a file of this folder")
        if file not in shards:
            shards[file] = read_file(index.parent / file)
    stored = {(name, file) for file, tensors in shards.items() for name in tensors}
    for name, file in sorted(stored ^ set(weight_map.items())):
        verb = "holds" if name in shards[file] else "lacks"
        raise ValueError(f"{index.parent / file} {verb} tensor {name}, contrary to {index.name}; download both again")
    return {name: shards[file][name] for name, file in weight_map.items()}


def is_buffer(tensor: Spec) -> bool:
    """Return whether a tensor is a constant that is not trained, so that a checkpoint may lack it (BUFFER, MASK)."""
    return bool(BUFFER.fullmatch(tensor.name)) or (len(tensor.shape) == 4 and bool(MASK.fullmatch(tensor.name)))


def check_complete(folder: Path, weights: Mapping[str, Tensor], is_diff: bool = False) -> None:
    """Raise ValueError if a tensor that config.json requires is missing, or vocab_size is not the number of embeddings.

    Loaders would initialise a missing tensor at random. Only UNIFORM_TYPES are checked. A diff is refused unless
    `is_diff` is true.
    """
    path = folder / "config.json"
    if not is_diff:
        refuse_diff(folder)
    config = read_json(path)
    if config.get("model_type") not in UNIFORM_TYPES:
        return
    matches = (LAYER.fullmatch(name) for name, tensor in weights.items() if not is_buffer(tensor))
    kinds = dict.fromkeys(match[1] for match in matches if match)
    kinds["self_attn.q_proj.weight"] = None
    layers = range(config_number(path, config, "num_hidden_layers"))
    required = ["model.embed_tokens.weight", "model.norm.weight"]
    required += [] if config.get("tie_word_embeddings") else ["lm_head.weight"]
    for name in chain(required, (f"model.layers.{layer}.{kind}" for layer in layers for kind in kinds)):
        if name not in weights:
            raise ValueError(f"{folder} lacks tensor {name}, which its config.json requires; download it again")
    embedding, rows = weights["model.embed_tokens.weight"], config_number(path, config, "vocab_size")
    if embedding.shape[0] != rows:
        raise ValueError(
            f"{path} has vocab_size {rows}, {embedding.file} has {embedding.shape[0]} embeddings; download both again"
        )


def check_finite(bits: np.ndarray, tensor: Spec, remedy: str = "use an intact copy of these weights") -> None:
    """Raise ValueError, which names file, tensor and remedy, if a float is NaN or infinite; other types pass."""
    if tensor.dtype in FLOATS:
        magnitude, exponent = FLOAT_MASKS[tensor.dtype]
        if (bits & bits.dtype.type(magnitude)).max(initial=0) >= exponent:
            file = f"{tensor.file}: " if isinstance(tensor, Tensor) else ""
            raise ValueError(f"{file}tensor {tensor.name} holds NaN or infinity; {remedy}")


def tensor_hash(tensor: Tensor) -> str:
    """Return the BLAKE3 of a tensor's bytes, in hexadecimal."""
    state = blake3()
    for chunk in tensor.chunks(BLOCK // tensor.itemsize):
        state.update(chunk.view(np.uint8).data)
    return state.hexdigest()


def tensor_hashes(tensors: Iterable[Tensor], label: str) -> dict[str, str]:
    """Return {name: BLAKE3} of all tensors. label: text of the progress bar."""
    tensors = list(tensors)
    result = {}
    with progress(sum(tensor.nbytes for tensor in tensors), label) as bar:
        for tensor, value in zip(tensors, in_order(tensor_hash, tensors), strict=True):
            result[tensor.name] = value
            bar.update(tensor.nbytes)
    return result


def fingerprint(tensors: Iterable[Spec], hashes: Mapping[str, str]) -> str:
    """Return one BLAKE3 of all weights, independent of sharding and order (sorted [name, dtype, shape, hash])."""
    lines = [json.dumps([t.name, t.dtype, list(t.shape), hashes[t.name]]) + "\n" for t in tensors]
    return blake3("".join(sorted(lines)).encode()).hexdigest()


def progress(total: int, label: str) -> tqdm:
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=None, leave=False)
