"""Write GGUF files: metadata through the gguf package, tensors streamed; quantise them with llama.cpp's own code.

A file consists of the header (metadata and tensor table) and the tensors, each padded to 32 bytes. Apart from the
tokenizer, at most about a million weights are in memory at a time.
"""

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_io.bit_patterns import from_float32, to_float32
from checkpoint_io.tensor_files import write_file
from checkpoint_io.tensors import CHUNK, Spec, Tensor, progress

from gguf_files.gguf_model import GgufModel
from gguf_files.gguf_vocabulary import GgufVocabulary

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}  # general.file_type
BLOCK_SIZES = {"Q8_0": 32, "Q4_0": 32}  # the row length of a quantised type must be a multiple of this
# Largest magnitude that each type can represent; the scales of quantised types are float16.
LARGEST = {"F32": 3.4028235e38, "F16": 65504.0, "BF16": 3.38e38, "Q8_0": 127 * 65504.0, "Q4_0": 8 * 65504.0}
ALIGNMENT = 32  # bytes, GGUF's default
INSTALL_QUANTISER = (
    "q4_k_m needs llama.cpp's quantiser; install it (it compiles for minutes): python -m pip install llama-cpp-python"
)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the new file."""

    name: str  # in llama.cpp
    source: Tensor
    kind: str  # its GGUF type, a key of LARGEST
    head_dim: int  # rows per head if they are reordered, else 0

    @property
    def nbytes(self) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return self.source.elements // elements * size


def choose_types(model: GgufModel, file_type: str) -> list[GgufTensor]:
    """Choose each tensor's GGUF type in a file of type `file_type`; print a notice if it has to be f16."""
    chosen = []
    for name, tensor in model.tensors.items():
        kind, columns = file_type.upper(), tensor.shape[-1]
        if file_type == "q4_0" and name == ("token_embd.weight" if model.tied else "output.weight"):
            kind = "Q8_0"
        if len(tensor.shape) == 1:
            kind = "F32"
        elif columns % BLOCK_SIZES.get(kind, 1):
            print(f"notice: {name} has {columns} columns, not a multiple of 32; it is stored as f16", file=sys.stderr)
            kind = "F16"
        is_reordered = model.architecture == "llama" and name.split(".")[-2] in ("attn_q", "attn_k")
        chosen.append(GgufTensor(name, tensor, kind, model.head_dim if is_reordered else 0))
    return chosen


def lossless_type(model: GgufModel) -> str:
    """Return the smallest file type that stores all matrices without rounding."""
    dtypes = {tensor.dtype.lower() for tensor in model.tensors.values() if len(tensor.shape) == 2}
    return dtypes.pop() if len(dtypes) == 1 else "f32"


def encoded_chunks(tensor: GgufTensor) -> Iterator[np.ndarray]:
    """Yield the tensor's GGUF bytes in chunks of whole rows; ValueError if its type cannot represent a value."""
    from gguf import GGMLQuantizationType, quants

    source, kind = tensor.source, tensor.kind
    columns = source.shape[1] if len(source.shape) == 2 else 1
    unit = max(1, tensor.head_dim) * columns
    for bits in source.chunks(max(unit, CHUNK // unit * unit)):
        if tensor.head_dim:  # interleave the two halves of each head: rows 0, half, 1, half + 1, …
            bits = bits.reshape(-1, 2, tensor.head_dim // 2, columns).swapaxes(1, 2).reshape(-1)
        if source.dtype == kind:
            yield bits
            continue
        values = to_float32(bits, source.dtype)
        largest = np.abs(values).max()
        if not largest <= LARGEST[kind]:  # also true for NaN
            raise ValueError(
                f"{source.file}: tensor {source.name} contains {largest:.4g}, which {kind.lower()} cannot represent; "
                "use bf16 or f32, or download the weights again if they are damaged"
            )
        if kind.startswith("Q"):
            yield quants.quantize(values.reshape(-1, columns), GGMLQuantizationType[kind])
        else:
            yield from_float32(values, kind)


def gguf_header(
    scratch: Path, name: str, model: GgufModel, vocabulary: GgufVocabulary, tensors: list[GgufTensor], file_type: int
) -> bytes:
    """Return the padded header as the gguf package writes it; scratch: path of a temporary file."""
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter

    writer: Any = GGUFWriter(scratch, model.architecture)
    try:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        for key, value in model.settings.items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key, value)
        writer.add_tokenizer_model(vocabulary.model)
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(vocabulary.types)
        if vocabulary.scores:
            writer.add_token_scores(vocabulary.scores)
        vocabulary.special.add_to_gguf(writer, quiet=True)
        if vocabulary.space_prefix is not None:
            writer.add_add_space_prefix(vocabulary.space_prefix)
        float32: Any = np.dtype(np.float32)
        factors = model.rope_factors
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, float32, factors.nbytes)
        for tensor in tensors:
            kind = GGMLQuantizationType[tensor.kind]
            writer.add_tensor_info(tensor.name, tensor.source.shape, float32, tensor.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    head = scratch.read_bytes()
    scratch.unlink()
    return head + bytes(-len(head) % ALIGNMENT)


def write_gguf(path: Path, head: bytes, factors: np.ndarray | None, tensors: list[GgufTensor], label: str) -> None:
    """Write a GGUF file, or resume an interrupted write.

    factors: `GgufModel.rope_factors`; label: text of the progress bar.
    """
    sources = {tensor.name: tensor for tensor in tensors}
    sizes = ({} if factors is None else {"rope_freqs.weight": factors.nbytes}) | {
        name: tensor.nbytes for name, tensor in sources.items()
    }

    def produce(spec: Spec) -> Iterator[np.ndarray]:
        if spec.name in sources:
            yield from map(np.ascontiguousarray, encoded_chunks(sources[spec.name]))
        elif factors is not None:
            yield factors
        yield np.zeros(spec.nbytes - sizes[spec.name], np.uint8)

    padded = [Spec(name, "U8", (size + -size % ALIGNMENT,)) for name, size in sizes.items()]
    with progress(sum(spec.nbytes for spec in padded), label) as bar:
        write_file(path, head, padded, produce, bar)


def quantise_q4_k_m(source: Path, target: Path) -> Counter[str]:
    """Quantise a GGUF file to Q4_K_M with llama.cpp; return the number of tensors of each type.

    Raises ValueError with llama.cpp's message. The C code runs in a daemon thread, so that Ctrl-C ends the command.
    """
    import ctypes

    import llama_cpp
    from gguf import GGUFReader

    messages: list[str] = []
    result: list[int] = []

    @llama_cpp.llama_log_callback
    def log(_level: int, text: bytes, _data: object) -> None:
        messages.append(text.decode(errors="replace"))

    def work() -> None:
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = FILE_TYPES["q4_k_m"]
        files = os.fsencode(source), os.fsencode(target)
        result.append(llama_cpp.llama_model_quantize(*files, ctypes.byref(options)))

    llama_cpp.llama_log_set(log, ctypes.c_void_p())
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p())  # back to the default, stderr
    if result != [0]:
        message = "".join(messages).strip().rpartition("\n")[2]
        raise ValueError(f"llama.cpp could not quantise {source}: {message}")
    return Counter(tensor.tensor_type.name for tensor in GGUFReader(target).tensors)
