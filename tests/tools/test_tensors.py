"""tensors.py and tensor_files.py: files are exchanged with safetensors and torch, and damage is named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_io.tensor_files import parse_size, verify_written, write_shards
from checkpoint_io.tensors import Spec, fingerprint, read_safetensors, read_weights, tensor_hashes
from safetensors.torch import load_file, save_file

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def every_type() -> dict[str, torch.Tensor]:
    """Return a tensor of each type, a scalar and an empty tensor."""
    torch.manual_seed(3)
    state = {f"layer.{name}": (torch.randn(5, 7) * 3).to(dtype) for name, dtype in TYPES.items()}
    return state | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4, dtype=torch.float16)}


def print_of(folder: Path) -> str:
    found = read_weights(folder)
    return fingerprint(found.values(), tensor_hashes(found.values(), ""))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return whether names, types, shapes and bytes are equal."""

    def content(state: dict[str, torch.Tensor]) -> dict[str, tuple[object, ...]]:
        return {
            name: (value.dtype, value.shape, value.reshape(-1).view(torch.uint8).tolist())
            for name, value in state.items()
        }

    return content(first) == content(second)


def test_files_are_exchangeable_with_safetensors(tmp_path: Path) -> None:
    state = every_type()
    (tmp_path / "ours").mkdir()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_weights(tmp_path)
    hashes = write_shards(tmp_path / "ours", list(found.values()), lambda spec: found[spec.name].chunks(4), 10**9)
    assert same(load_file(tmp_path / "ours/model.safetensors"), state)
    assert hashes == tensor_hashes(found.values(), "")


@pytest.mark.parametrize("limit", [1, 300, 10**9])
def test_shards_keep_size_limit_and_fingerprint(tmp_path: Path, limit: int) -> None:
    state = every_type()
    (tmp_path / "ours").mkdir()
    save_file(state, tmp_path / "model.safetensors")
    found = read_weights(tmp_path)
    write_shards(tmp_path / "ours", list(found.values()), lambda spec: found[spec.name].chunks(), limit)
    assert print_of(tmp_path / "ours") == print_of(tmp_path)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert (len(files) == 1) == (limit == 10**9)
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= limit


def test_fingerprint_depends_on_names_types_shapes_and_bytes(tmp_path: Path) -> None:
    state = {"a": torch.ones(2, 3), "b": torch.zeros(6)}
    variants = [
        state, {"a": state["a"], "c": state["b"]}, state | {"a": torch.ones(3, 2)},
        state | {"b": torch.zeros(3).double()}, state | {"b": -torch.zeros(6)},
        {"a": state["b"].view(2, 3), "b": state["a"].view(6)},
    ]  # fmt: skip
    prints = set()
    for number, variant in enumerate(variants):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(variant, folder / "model.safetensors")
        prints.add(print_of(folder))
    assert len(prints) == len(variants)


def test_bin_shards_read_as_same_weights(tmp_path: Path) -> None:
    state = every_type()
    save_file(state, tmp_path / "model.safetensors")
    folder = tmp_path / "bin"
    folder.mkdir()
    places = {}
    for number, name in enumerate(state):
        file = f"pytorch_model-{number:05d}.bin"
        torch.save({name: state[name]}, folder / file)
        places[name] = file
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert print_of(folder) == print_of(tmp_path)


def test_tensors_sharing_memory_in_bin_are_all_read(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"a": whole, "b": whole.T, "c": whole[1]}, tmp_path / "pytorch_model.bin")
    found = read_weights(tmp_path)
    for name, value in (("a", whole), ("b", whole.T), ("c", whole[1])):
        assert found[name].read().view(np.float32).reshape(value.shape).tolist() == value.tolist()


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("400MB", 4 * 10**8), ("1.5 kb", 1500), ("77", 77), ("5 GB", 5 * 10**9)]
)
def test_parse_size_accepts_units(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_parse_size_is_exact_for_any_number_of_digits() -> None:
    assert parse_size("9" * 400) == int("9" * 400)
    assert parse_size("9007199254740993") == 9007199254740993  # 2^53 + 1, which a float does not hold


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "-5", "0", "0.5", "five", "5TB", "1.2.3GB", "1e999", "nan", "inf", "9e9GB", " 1"]
)
def test_parse_size_refuses_invalid_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def sharded(folder: Path) -> Path:
    """Write a folder with two shards, `a` in the first and `b` in the second, and their index; return it."""
    folder.mkdir()
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in places.items():
        save_file({name: torch.arange(100.0)}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def edit_index(folder: Path, **places: str | None) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    merged = content["weight_map"] | places
    index.write_text(json.dumps({"weight_map": {name: file for name, file in merged.items() if file}}))


SECOND = "model-00002-of-00002.safetensors"
FAULTS = {
    "cut off": (lambda f: os.truncate(f / SECOND, (f / SECOND).stat().st_size - 1), [SECOND, "cut off"]),
    "cut off in the header": (lambda f: os.truncate(f / SECOND, 20), [SECOND, "header"]),
    "empty": (lambda f: os.truncate(f / SECOND, 0), [SECOND, "download it again"]),
    "too long": (lambda f: (f / SECOND).open("ab").write(b"x"), [SECOND, "cut off or damaged"]),
    "garbage": (lambda f: (f / SECOND).write_bytes(b"\xff" * 500), [SECOND, "cut off or damaged"]),
    "no JSON": (lambda f: (f / SECOND).write_bytes(b"\x08" + bytes(7) + b"{{{{{{{{"), [SECOND, "invalid JSON"]),
    "shard missing": (lambda f: (f / SECOND).unlink(), [SECOND, "lacks"]),
    "tensor not in shard": (lambda f: edit_index(f, c=SECOND), [SECOND, "lacks tensor c"]),
    "tensor not in index": (lambda f: edit_index(f, b=None, c=None, a=SECOND), [SECOND, "lacks tensor a"]),
    "tensor in shard alone": (lambda f: save_file({"b": torch.ones(1), "x": torch.ones(1)}, f / SECOND), ["tensor x"]),
    "outside": (lambda f: edit_index(f, b="../b.safetensors"), ["lacks ../b.safetensors"]),
    "absolute": (lambda f: edit_index(f, b="/etc/passwd"), ["lacks /etc/passwd"]),
    "index damaged": (lambda f: (f / "model.safetensors.index.json").write_text("{"), ["index.json is damaged"]),
    "index empty": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), ["weight_map"]),
    "index missing": (lambda f: (f / "model.safetensors.index.json").unlink(), ["shards but no", "index.json"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_refused_and_named(tmp_path: Path, fault: str) -> None:
    folder = sharded(tmp_path / "model")
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read_weights(folder)
    for part in message:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("change", [{"shape": [99]}, {"dtype": "F99"}, {"data_offsets": [0, 8]}])
def test_inconsistent_header_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    header = {"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]} | change}
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(400))
    with pytest.raises(ValueError, match=r"model\.safetensors is cut off or damaged"):
        read_safetensors(file)


@pytest.mark.parametrize("shape", [[-100], [100.0], ["100"], [True], 100, None])
def test_invalid_shape_is_refused(tmp_path: Path, shape: object) -> None:
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 400]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(400))
    with pytest.raises(ValueError, match=r"model\.safetensors is cut off or damaged"):
        read_safetensors(file)


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["TRAP"],)


def test_code_in_bin_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save({"a": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged or holds more than tensors"):
        read_weights(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        read_weights(tmp_path)


def test_chunks_concatenate_to_tensor(tmp_path: Path) -> None:
    values = torch.arange(100_000, dtype=torch.int64)
    save_file({"a": values}, tmp_path / "model.safetensors")
    tensor = read_weights(tmp_path)["a"]
    assert np.concatenate(list(tensor.chunks(999))).tolist() == values.tolist()
    assert np.concatenate(list(tensor.chunks(999, 10, 5010))).tolist() == values[10:5010].tolist()
    assert Spec("a", "I64", (100_000,)).nbytes == tensor.read().nbytes


def test_file_truncated_while_reading_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.arange(100_000)}, tmp_path / "model.safetensors")
    tensor = read_weights(tmp_path)["a"]
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(ValueError, match="was truncated while tensor a was read"):
        list(tensor.chunks())


def test_verify_written_names_changed_tensor(tmp_path: Path) -> None:
    save_file({"a": torch.arange(100), "b": torch.arange(100)}, tmp_path / "model.safetensors")
    hashes = tensor_hashes(read_weights(tmp_path).values(), "")
    verify_written(tmp_path, hashes)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor b does not have the expected content; check"):
        verify_written(tmp_path, hashes)
    with pytest.raises(ValueError, match="does not hold the tensors"):
        verify_written(tmp_path, {"a": hashes["a"]})
