"""tools/import_gguf.py: damaged and unsupported files are refused in one line, and nothing is written."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import gguf_header, imported_folder
from gguf_rewriting import Typed, exported, imported, rewritten
from in_process import RunTool
from llama_cpp_server import Make

gguf = pytest.importorskip("gguf")

SCRIPT = "tools/import_gguf.py"


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (70000.0, "float16", r"tensor blk\.1\.ffn_up\.weight holds 7e\+04, which float16 cannot represent"),
        (float("nan"), "float32", r"tensor blk\.1\.ffn_up\.weight holds NaN or infinity"),
        (float("inf"), "bfloat16", r"tensor blk\.1\.ffn_up\.weight holds NaN or infinity"),
    ],
)
def test_import_refuses_values_that_the_dtype_cannot_represent(
    make: Make, value: float, dtype: str, message: str
) -> None:
    file = exported(make())
    tensor = gguf_header.read_gguf(file).tensors["blk.1.ffn_up.weight"]
    content = bytearray(file.read_bytes())
    content[tensor.offset : tensor.offset + 4] = np.float32(value).tobytes()
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        imported(file, dtype=dtype)
    assert not (file.parent / "imported").exists()


def test_import_refuses_an_infinite_scale_without_a_warning(make: Make, recwarn: pytest.WarningsRecorder) -> None:
    file = exported(make(initializer_range=0.05), "q8_0")
    tensor = gguf_header.read_gguf(file).tensors["blk.1.ffn_up.weight"]
    content = bytearray(file.read_bytes())
    content[tensor.offset : tensor.offset + 3] = np.float16(np.inf).tobytes() + b"\0"
    file.write_bytes(content)
    recwarn.clear()
    with pytest.raises(ValueError, match=r"tensor blk\.1\.ffn_up\.weight holds NaN or infinity"):
        imported(file)
    assert not recwarn.list


FLOAT64_ONLY = Typed(1e300, gguf.GGUFValueType.FLOAT64)  # above the range of float32
ABOVE_INT32 = Typed(1 << 31, gguf.GGUFValueType.UINT32)
METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general__architecture": "mamba"}, "architecture 'mamba' is not supported; supported are llama"),
    "split": ({"split__count": 3}, "is one of 3 files of a split model; merge them"),
    "experts": ({"llama__expert_count": 8}, "llama.expert_count = 8 is not supported"),
    "window": ({"llama__attention__sliding_window": 100}, "llama.attention.sliding_window = 100 is not supported"),
    "softcapping": ({"llama__attn_logit_softcapping": 30.0}, "llama.attn_logit_softcapping = 30.0 is not supported"),
    "scaling": ({"llama__rope__scaling__type": "longrope"}, "type 'longrope' is not supported; only linear and yarn"),
    "factor": ({"llama__rope__scaling__type": "linear"}, "llama.rope.scaling.factor is missing"),
    "partial rotation": ({"llama__rope__dimension_count": 8}, "rope.dimension_count 8 are not supported together"),
    "no layers": ({"llama__block_count": None}, "llama.block_count is missing"),
    "text for a number": ({"llama__block_count": "two"}, "llama.block_count is two, not a positive integer"),
    "more layers": ({"llama__block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
    "text as window": ({"llama__attention__sliding_window": "x"}, "attention.sliding_window = x is not supported"),
    "array of another key": (
        {"llama__rope__dimension_sections": [1, 2]}, "rope.dimension_sections = [1 2] is not supported",
    ),
    "array as type": ({"llama__rope__scaling__type": [1, 2]}, "rope.scaling.type '[1 2]' is not supported"),
    "huge": ({"llama__block_count": 2**31 - 1}, "llama.block_count is 2,147,483,647, but there are fewer tensors"),
    "fewer layers": ({"llama__block_count": 1}, "tensor blk.1.attn_norm.weight does not belong"),
    "width": ({"llama__feed_forward_length": 64}, "has the shape [96, 64], but the metadata require [64, 64]"),
    "epsilon": ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "is -1.0, not a positive float32"),
    "tokenizer": ({"tokenizer__ggml__model": "t5"}, "tokenizer 't5' is not supported"),
    "array as tokenizer": ({"tokenizer__ggml__model": [1, 2]}, "tokenizer '[1 2]' is not supported"),
    "array as add_bos_token": ({"tokenizer__ggml__add_bos_token": [1, 2]}, "add_bos_token is [1 2], not true or false"),
    "pre-tokenizer": (
        {"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__pre": "dbrx"}, "pre-tokenizer 'dbrx' is not supported"
    ),
    "fewer tokens": ({"tokenizer__ggml__tokens": ["a", "b"]}, "are not tables of 800 tokens"),
    "bos": ({"tokenizer__ggml__bos_token_id": 800}, "bos_token_id is 800, not the id of a token"),
    "range": (
        {"llama__context_length": ABOVE_INT32}, "context_length is 2147483648, not a positive integer up to 2,147,",
    ),
    "float range": ({"llama__rope__freq_base": FLOAT64_ONLY}, "llama.rope.freq_base is 1e.300, not a positive float32"),
    "factor of 0": (
        {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 0.0}, "factor is 0.0, not a positive"
    ),
    "adapter": ({"general__type": "adapter"}, "holds the type 'adapter', not a model; use the model's own file"),
    "float types": ({"tokenizer__ggml__token_type": [1.5] * 800}, "token_type has a value other than 1 to 6"),
    "bool types": ({"tokenizer__ggml__token_type": [True] * 800}, "token_type has a value other than 1 to 6"),
    "integer scores": ({"tokenizer__ggml__scores": [1] * 800}, "has no scores for its tokens"),
    "array as prefix": ({"tokenizer__ggml__add_space_prefix": [1, 2]}, "add_space_prefix is [1 2], not true or false"),
    "text as prefix": ({"tokenizer__ggml__add_space_prefix": "no"}, "add_space_prefix is no, not true or false"),
    "template": ({"tokenizer__chat_template": [1, 2]}, "tokenizer.chat_template is [1 2], not text"),
    "alignment": ({"general__alignment": 48}, "general.alignment is 48, not a power of two"),
}  # fmt: skip


@pytest.mark.parametrize("case", METADATA)
def test_import_refuses_unsupported_and_inconsistent_metadata(make: Make, tmp_path: Path, case: str) -> None:
    changes, message = METADATA[case]
    file = rewritten(exported(make()), tmp_path / "{changed}.gguf", **changes)
    with pytest.raises(ValueError, match=f"changed}}.gguf.*{message}".replace("[", r"\[").replace("(", r"\(")) as error:
        imported(file)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is cut off"),
        (b"PK\3\4" + bytes(100), "it does not begin with GGUF"),
        (b"GGUF\1\0\0\0" + bytes(100), "it has version 1; only little-endian files of versions 2 and 3"),
        (b"GGUF\0\0\0\3" + bytes(100), "it is big-endian"),
        (b"GGUF\3\0\0\0" + b"\xff" * 100, "tensors, more than 65,536"),
        (b"GGUF\3\0\0\0" + bytes(8) + b"\xff" * 100, "metadata entries, more than 65,536"),
        (b"GGUF\3\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\xff" * 100, "bytes of a string, more than"),
    ],
)
def test_import_refuses_files_without_a_supported_header(
    tmp_path: Path, run_tool: RunTool, content: bytes, message: str
) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    done = run_tool(SCRIPT, "--gguf", tmp_path / "x.gguf", "--output", tmp_path / "out", status=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_damaged_header_is_read_or_raises_a_value_error(make: Make, tmp_path: Path) -> None:
    """Bytes of the header are changed at random, and the file may be cut off.

    If the header can still be read, all of its tensors are inside the file.
    """
    file = exported(make(), "f16")
    content, draw = file.read_bytes(), random.Random(3)
    start = min(tensor.offset for tensor in gguf_header.read_gguf(file).tensors.values())
    changed = tmp_path / "changed.gguf"
    for _ in range(300):
        data = bytearray(content)
        for _ in range(draw.choice([1, 1, 4])):
            data[draw.randrange(start)] = draw.choice([0, 1, 2, 127, 128, 255])
        cut = draw.choice([len(data), draw.randrange(len(data))])
        changed.write_bytes(data[:cut])
        try:
            header = gguf_header.read_gguf(changed)
        except ValueError as error:
            assert str(error).startswith(str(changed)), error
            continue
        assert all(tensor.offset + tensor.nbytes <= cut for tensor in header.tensors.values())


def test_import_refuses_invalid_options_and_an_existing_folder(make: Make, tmp_path: Path, run_tool: RunTool) -> None:
    file = exported(make())
    for options, message in (
        (("--gguf", tmp_path / "none.gguf"), "none.gguf does not exist; --gguf takes a GGUF file"),
        (("--gguf", file, "--dtype", "int8"), "--dtype int8 is unknown; use one of float16, bfloat16, float32"),
        (("--gguf", file, "--max_shard_size", "no"), "'no' is not a size for a shard"),
        (("--gguf", file.parent / "model"), "model is a folder; --gguf takes a GGUF file"),
        (("--gguf", "/dev/zero"), "/dev/zero is a device or pipe; --gguf takes a GGUF file"),
    ):
        done = run_tool(SCRIPT, *options, "--output", tmp_path / "out", status=2)
        assert message in done.stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    assert "out" in run_tool(SCRIPT, "--gguf", file, "--output", tmp_path / "out", status=2).stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_import_refuses_rotary_divisors_that_are_not_positive_and_finite(
    make: Make, tmp_path: Path, value: float
) -> None:
    divisors = np.full(8, value, np.float32), gguf.GGMLQuantizationType.F32
    file = rewritten(exported(make()), tmp_path / "changed.gguf", {"rope_freqs.weight": divisors})
    with pytest.raises(ValueError, match=r"changed\.gguf: tensor rope_freqs\.weight holds NaN, infinity or"):
        imported(file)


def test_import_refuses_a_file_that_changes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    file = exported(make())
    write = imported_folder.write_shards

    def write_and_change(*arguments: Any) -> Any:
        os.utime(file)
        return write(*arguments)

    monkeypatch.setattr(imported_folder, "write_shards", write_and_change)
    with pytest.raises(ValueError, match=r"model\.gguf was changed while it was read; run the command again"):
        imported(file)
    assert not (file.parent / "imported").exists()
