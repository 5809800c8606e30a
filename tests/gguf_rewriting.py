"""Export, import and change GGUF files, for the tests of tools/import_gguf.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import export_gguf
import import_gguf
import numpy as np
import pytest

gguf = pytest.importorskip("gguf")


def exported(folder: Path, kind: str = "f32") -> Path:
    file = folder.parent / "model.gguf"
    export_gguf.main(str(folder), str(file), kind)
    return file


def imported(file: Path, **options: str) -> Path:
    folder = file.parent / "imported"
    import_gguf.main(str(file), str(folder), **options)
    return folder


def write_types(path: Path, source: Path, kind: str) -> dict[str, np.ndarray]:
    """Write a copy of a GGUF file with matrices of random blocks of type `kind`; return {name: dequantised values}."""
    quant, draw = gguf.GGMLQuantizationType[kind], np.random.default_rng(5)
    block, size = gguf.GGML_QUANT_SIZES[quant]
    values, tensors = {}, {}
    for tensor in gguf.GGUFReader(source).tensors:
        if len(tensor.shape) == 2:
            rows, columns = (int(n) for n in reversed(tensor.shape))
            blocks = draw.integers(0, 256, (rows, columns // block, size), np.uint8)
            blocks[blocks & 0x7C == 0x7C] &= 0x7B  # no byte is the upper byte of an infinite or NaN float16
            data = blocks.reshape(rows, -1)
            values[tensor.name], tensors[tensor.name] = gguf.quants.dequantize(data, quant), (data, quant)
    rewritten(source, path, tensors)
    return values


class Typed(NamedTuple):
    """A metadata value with an explicit GGUF type, which may differ from the default for its Python type."""

    value: Any
    kind: Any


def rewritten(
    source: Path, path: Path, tensors: Mapping[str, tuple[np.ndarray, Any]] | None = None, **changes: Any
) -> Path:
    """Write a copy of a GGUF file with changed metadata ("__" in a name stands for "."); None removes a key.

    tensors: name -> (data, type) of tensors that are added or replaced.
    """
    reader = gguf.GGUFReader(source)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    writer = gguf.GGUFWriter(path, changes.pop("general.architecture", "llama"))
    content = {
        key: (field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in changes
    }
    for key, (value, kind, sub) in content.items():
        writer.add_key_value(key, value, kind, sub)
    for key, value in changes.items():
        if isinstance(value, Typed):
            writer.add_key_value(key, *value)
        elif value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    stored = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
    for name, (data, quant) in (stored | dict(tensors or {})).items():
        writer.add_tensor(name, data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
