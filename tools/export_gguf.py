"""Write a checkpoint folder as one GGUF file for llama.cpp: weights, tokenizer and chat template.

    python tools/export_gguf.py --model_path merged --output_file merged-q8_0.gguf --type q8_0
    python tools/export_gguf.py --model_path merged --output_file merged-q4_k_m.gguf --type q4_k_m

Types: f32, f16, bf16, q8_0, q4_0, and q4_k_m through llama.cpp's own quantiser. Vectors stay float32. A matrix whose
rows are no whole number of blocks becomes f16, with a notice. q4_0 keeps the output matrix (the embedding where they
are one) in q8_0; llama.cpp, whose own file would have it in q6_k, does the same for the same reason.

Everything is streamed: about a million weights are held at a time, and the tokenizer. The file appears whole or not at
all. Needs the package gguf.
"""

from command_line.fire_commands import run

import errno
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from checkpoint_io.bit_patterns import from_float32, to_float32
from checkpoint_io.checkpoint_folders import existing, sync
from checkpoint_io.seal_check import verify_seal
from checkpoint_io.tensors import CHUNK, Tensor, progress
from gguf_files.gguf_model import Model, Place, interleaved, read_model
from gguf_files.gguf_vocabulary import Vocabulary, add_vocabulary, read_template, read_vocabulary

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}  # general.file_type
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18)}  # elements, bytes
# The largest value that each can hold; of the quantised ones, scales are float16.
LARGEST = {"F32": 3.4028235e38, "F16": 65504.0, "BF16": 3.38e38, "Q8_0": 127 * 65504.0, "Q4_0": 8 * 65504.0}
ALIGNMENT = 32  # bytes, GGUF's default
BYTES_A_TOKEN = 64  # of the tokenizer, more than it takes
QUANTISED_SHARE = 0.7  # bytes for each weight, more than q4_k_m takes
GET_GGUF = "gguf is not installed here; python -m pip install gguf"
GET_QUANTISER = "q4_k_m needs llama.cpp's quantiser; python -m pip install llama-cpp-python (minutes: it is compiled)"


@dataclass(frozen=True)
class Written:
    """A tensor on its way: where it goes, and GGUF's type for it."""

    source: Tensor
    place: Place
    kind: str  # of BLOCKS

    @property
    def nbytes(self) -> int:
        elements, size = BLOCKS[self.kind]
        return self.source.elements // elements * size


def choose(model: Model, kind: str) -> list[Written]:
    """GGUF's type for every tensor of a file of type `kind`."""
    chosen = []
    for tensor, place in model.tensors:
        wanted = kind.upper()
        if kind == "q4_0" and place.name == ("token_embd.weight" if model.tied else "output.weight"):
            wanted = "Q8_0"
        if len(place.shape) == 1:
            wanted = "F32"
        elif place.shape[1] % BLOCKS[wanted][0]:
            print(f"notice: {place.name} has rows of {place.shape[1]}, no multiple of 32; it is f16", file=sys.stderr)
            wanted = "F16"
        chosen.append(Written(tensor, place, wanted))
    return chosen


def encoded(tensor: Written) -> Iterator[np.ndarray]:
    """The tensor's bytes in GGUF, chunk by chunk of whole rows; ValueError where its type cannot hold a value."""
    from gguf import GGMLQuantizationType, quants

    source, place, kind = tensor.source, tensor.place, tensor.kind
    columns = source.shape[1] if len(source.shape) == 2 else 1
    unit = max(1, place.head) * columns
    for piece in source.chunks(max(unit, CHUNK // unit * unit)):
        bits = interleaved(piece, source, place.head)
        if source.dtype == kind:
            yield bits
            continue
        values = to_float32(bits, source.dtype)
        largest = np.abs(values).max()
        if not largest <= LARGEST[kind]:  # so that NaN is found, too
            raise ValueError(
                f"{source.file}: tensor {source.name} holds {largest:.4g}, which {kind.lower()} cannot; choose bf16 "
                "or f32, or get the weights again if they are damaged"
            )
        if kind.startswith("Q"):
            yield quants.quantize(values.reshape(-1, columns), GGMLQuantizationType[kind])
        else:
            yield from_float32(values, kind)


def write_gguf(
    path: Path, name: str, model: Model, vocabulary: Vocabulary, template: str, chosen: list[Written], file_type: int
) -> None:
    """Write the file: header, metadata and table of tensors by gguf's writer, then the data as it is read."""
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter

    writer: Any = GGUFWriter(path, model.architecture)
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        for key, value in model.settings.items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key, value)
        add_vocabulary(writer, vocabulary, template)
        float32: Any = np.dtype(np.float32)
        factors = model.rope_factors
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, float32, factors.nbytes)
        for tensor in chosen:
            kind = GGMLQuantizationType[tensor.kind]
            writer.add_tensor_info(tensor.place.name, tensor.place.shape, float32, tensor.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    with path.open("ab") as file, progress(sum(tensor.nbytes for tensor in chosen), name) as bar:
        if factors is not None:
            align(file)
            file.write(factors.data)
        for tensor in chosen:
            align(file)
            start = file.tell()
            for chunk in encoded(tensor):
                file.write(np.ascontiguousarray(chunk).data)
                bar.update(chunk.nbytes)
            assert file.tell() - start == tensor.nbytes, f"{tensor.place.name}: {file.tell() - start} bytes"
        align(file)
    sync(path)


def align(file: BinaryIO) -> None:
    """Fill up to where the next tensor starts."""
    file.write(bytes(-file.tell() % ALIGNMENT))


def quantise(source: Path, target: Path) -> Counter[str]:
    """Quantise a GGUF file to Q4_K_M with llama.cpp's own code; returns how many tensors became which type.

    Raises ValueError with what llama.cpp says where it fails.
    """
    import ctypes

    import llama_cpp
    from gguf import GGUFReader

    said: list[str] = []

    @llama_cpp.llama_log_callback
    def listen(_level: int, text: bytes, _data: object) -> None:
        said.append(text.decode(errors="replace"))

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = FILE_TYPES["q4_k_m"]
    llama_cpp.llama_log_set(listen, ctypes.c_void_p())
    try:
        failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(options))
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p())  # to stderr again
    if failed:
        raise ValueError(f"llama.cpp could not quantise {source}: {''.join(said).strip().rpartition(chr(10))[2]}")
    sync(target)
    return Counter(tensor.tensor_type.name for tensor in GGUFReader(target).tensors)


@contextmanager
def new_file(target: Path, needed: int) -> Iterator[Path]:
    """Yield `<target>.partial`, which becomes `target` when the block ends well and is removed when it does not.

    needed: bytes that will be written. Raises ValueError on a target that exists or cannot be written, and where the
    disk is too small.
    """
    partial = target.with_name(f"{target.name}.partial")
    if target.exists():
        raise ValueError(f"{target} exists already; name a new file or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"")
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error.strerror}); name a place that takes files") from None
    try:
        free = shutil.disk_usage(target.parent).free
        if needed > free:
            raise ValueError(
                f"{target} needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there; make room or write "
                "elsewhere"
            )
        yield partial
        partial.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ValueError(f"{target}: {error.strerror} while writing it; nothing was kept: make room") from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def exact_type(model: Model) -> str:
    """The smallest type that holds the matrices as they are."""
    found = {tensor.dtype.lower() for tensor, place in model.tensors if len(place.shape) == 2}
    return found.pop() if len(found) == 1 else "f32"


def main(model_path: str, output_file: str, type: str = "q8_0") -> None:
    """Write model_path as the GGUF file output_file.

    Args:
        model_path: a checkpoint folder with its tokenizer; merge an adapter first (tools/weight_diff.py merge).
        output_file: a new file ending in .gguf.
        type: f32, f16, bf16, q8_0, q4_0 or q4_k_m.
    """
    kind, target = type.lower(), Path(output_file)
    if kind not in FILE_TYPES:
        raise ValueError(f"--type {type} is not exported; it takes {', '.join(FILE_TYPES)}")
    if target.suffix != ".gguf":
        raise ValueError(f"--output_file {target} does not end in .gguf, by which programs know such files; name it so")
    for package, remedy in (("gguf", GET_GGUF), ("llama_cpp", GET_QUANTISER if kind == "q4_k_m" else "")):
        if remedy and find_spec(package) is None:
            raise ValueError(remedy)
    folder = existing(model_path, "--model_path", "config.json")
    model = read_model(folder)
    vocabulary, template = read_vocabulary(folder, model.rows), read_template(folder)
    exact = exact_type(model)
    chosen = choose(model, exact if kind == "q4_k_m" else kind)
    for notice in vocabulary.notices:
        print(f"notice: {notice}", file=sys.stderr)
    needed = sum(tensor.nbytes for tensor in chosen) + BYTES_A_TOKEN * model.rows
    if kind == "q4_k_m":
        needed += int(QUANTISED_SHARE * sum(tensor.elements for tensor, _ in model.tensors))
    name = folder.resolve().name
    with new_file(target, needed) as partial:
        verify_seal(folder)
        if kind == "q4_k_m":
            unquantised = target.with_name(f"{target.name}.{exact}.partial")
            try:
                write_gguf(unquantised, name, model, vocabulary, template, chosen, FILE_TYPES[exact])
                counts = quantise(unquantised, partial)
            finally:
                unquantised.unlink(missing_ok=True)
        else:
            write_gguf(partial, name, model, vocabulary, template, chosen, FILE_TYPES[kind])
            counts = Counter(tensor.kind for tensor in chosen)
    kinds = ", ".join(f"{count} {found.lower()}" for found, count in counts.most_common())
    print(
        f"{target}: {target.stat().st_size / 1e6:,.2f} MB, {counts.total()} tensors ({kinds}), "
        f"{len(vocabulary.tokens):,} tokens"
    )


if __name__ == "__main__":
    run(main)
