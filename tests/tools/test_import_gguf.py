"""tools/import_gguf.py: importing inverts exporting, bit for bit; damaged and unsupported files are refused."""

import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import export_gguf
import import_gguf
import numpy as np
import pytest
import torch
from gguf_files import gguf_header, imported_folder
from in_process import RunTool
from llama_cpp_server import FAMILIES, Make, edit, write_byte_level_tokenizer
from safetensors.torch import load_file
from tokenizer_files.tokenizer_check import HARD_TEXTS

gguf = pytest.importorskip("gguf")

TOKENS = "tokenizer.ggml.tokens"
SCRIPT = "tools/import_gguf.py"
TEXTS = [*HARD_TEXTS, "½ Ⅷ 12345", "a  b\n\n\nc", "<|eot_id|> x", "don't I'LL"]


def exported(folder: Path, kind: str = "f32") -> Path:
    file = folder.parent / "model.gguf"
    export_gguf.main(str(folder), str(file), kind)
    return file


def imported(file: Path, **options: str) -> Path:
    folder = file.parent / "imported"
    import_gguf.main(str(file), str(folder), **options)
    return folder


@pytest.mark.parametrize("case", FAMILIES)
def test_import_restores_exported_weights_and_logits(make: Make, case: str) -> None:
    from transformers import AutoModelForCausalLM

    kind, settings = FAMILIES[case]
    source = make(kind, **settings)
    folder = imported(exported(source))
    before, after = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ids = torch.arange(3, 203).reshape(2, 100)  # longer than the original context of the scaled cases
    with torch.no_grad():
        one, other = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (source, folder))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["sentencepiece", "llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_import_restores_tokenizer(make: Make, name: str) -> None:
    from transformers import AutoTokenizer

    source = make()
    if name != "sentencepiece":
        write_byte_level_tokenizer(source, name)
        (source / "tokenizer.model").unlink(missing_ok=True)
    (source / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}\n")
    folder = imported(exported(source))
    one, other = (AutoTokenizer.from_pretrained(path) for path in (source, folder))
    for text in TEXTS:
        assert other(text).input_ids == one(text).input_ids, text
        assert other.decode(other(text).input_ids) == one.decode(one(text).input_ids)
    assert (other.bos_token_id, other.eos_token_id) == (one.bos_token_id, one.eos_token_id)
    assert (folder / "chat_template.jinja").read_text() == (source / "chat_template.jinja").read_text()
    assert (folder / "tokenizer.model").is_file() == (name == "sentencepiece")


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_export_of_import_is_the_same_file_content(make: Make, kind: str, tmp_path: Path) -> None:
    file = exported(make(initializer_range=0.05), kind)
    folder = imported(file, dtype="float32")
    again = tmp_path / "again.gguf"
    export_gguf.main(str(folder), str(again), kind)
    first, second = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (file, again))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.tensor_type == second[name].tensor_type
        assert np.array_equal(tensor.data, second[name].data), name


def write_types(path: Path, source: Path, kind: str) -> dict[str, np.ndarray]:
    """Write a copy of a GGUF file whose matrices have random blocks of a type; return their float32 values."""
    quant, draw = gguf.GGMLQuantizationType[kind], np.random.default_rng(5)
    block, size = gguf.GGML_QUANT_SIZES[quant]
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    values = {}
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        rows, columns = (int(n) for n in reversed(tensor.shape))
        blocks = draw.integers(0, 256, (rows, columns // block, size), np.uint8)
        blocks[blocks & 0x7C == 0x7C] &= 0x7B  # no byte can be the exponent of an infinite float16
        data = blocks.reshape(rows, -1)
        values[tensor.name] = gguf.quants.dequantize(data, quant)
        writer.add_tensor(tensor.name, data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("kind", [kind for kind in gguf_header.TENSOR_TYPES if kind[0] in "QI"])
def test_import_converts_every_quantised_type(make: Make, tmp_path: Path, kind: str) -> None:
    file = exported(make(hidden_size=256, intermediate_size=512))
    values = write_types(tmp_path / "typed.gguf", file, kind)
    after = load_file(imported(tmp_path / "typed.gguf", dtype="float32") / "model.safetensors")
    for layer in range(2):
        assert np.array_equal(
            after[f"model.layers.{layer}.mlp.up_proj.weight"].numpy(), values[f"blk.{layer}.ffn_up.weight"]
        )
        for short, heads in (("q", 4), ("k", 2)):
            weight = values[f"blk.{layer}.attn_{short}.weight"]
            restored = weight.reshape(heads, 32, 2, -1).swapaxes(1, 2).reshape(weight.shape)
            assert np.array_equal(after[f"model.layers.{layer}.self_attn.{short}_proj.weight"].numpy(), restored)
    assert np.array_equal(after["lm_head.weight"].numpy(), values["output.weight"])


def test_type_table_is_that_of_ggml() -> None:
    for number, name in gguf_header.TYPE_NAMES.items():
        quant = gguf.GGMLQuantizationType(number)
        assert (quant.name, gguf.GGML_QUANT_SIZES[quant]) == (name, gguf_header.TENSOR_TYPES[name])


def test_import_seals_the_folder_with_the_file_as_parent(make: Make, run_tool: RunTool) -> None:
    from blake3 import blake3

    file = exported(make(), "bf16")
    done = run_tool(SCRIPT, "--gguf", file, "--output", file.parent / "imported")
    assert "LlamaForCausalLM, 164,160 parameters in bfloat16, 21 tensors (16 bf16, 5 f32), context 256" in done.stdout
    seal = json.loads((file.parent / "imported" / "checkpoint.json").read_text())
    assert seal["parents"] == [{"name": "model.gguf", "blake3": blake3(file.read_bytes()).hexdigest()}]
    run_tool("tools/checkpoint.py", "verify", file.parent / "imported")
    assert (
        f"parent      model.gguf {seal['parents'][0]['blake3']}"
        in run_tool("tools/checkpoint.py", "show", file.parent / "imported").stdout
    )


def test_import_keeps_end_tokens_of_a_chat_model(make: Make) -> None:
    source = make()
    edit(source / "generation_config.json", eos_token_id=[2, 7, 9], pad_token_id=2)
    folder = imported(exported(source))
    ids = {"bos_token_id": 1, "eos_token_id": [2, 7, 9]}
    assert ids.items() <= json.loads((folder / "generation_config.json").read_text()).items()
    assert ids.items() <= json.loads((folder / "config.json").read_text()).items()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (70000.0, "float16", r"tensor blk\.1\.ffn_up\.weight holds 7e\+04, which float16 cannot represent"),
        (float("nan"), "float32", r"tensor blk\.1\.ffn_up\.weight holds NaN or infinity"),
        (float("inf"), "bfloat16", r"tensor blk\.1\.ffn_up\.weight holds NaN or infinity"),
    ],
)
def test_import_refuses_values_that_type_cannot_hold(make: Make, value: float, dtype: str, message: str) -> None:
    file = exported(make())
    tensor = gguf_header.read_gguf(file).tensors["blk.1.ffn_up.weight"]
    content = bytearray(file.read_bytes())
    content[tensor.offset : tensor.offset + 4] = np.float32(value).tobytes()
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        imported(file, dtype=dtype)
    assert not (file.parent / "imported").exists()


class Typed(NamedTuple):
    """A value of the metadata with its type, if that does not follow from the value."""

    value: Any
    kind: Any


def rewritten(source: Path, path: Path, divisors: np.ndarray | None = None, **changes: Any) -> Path:
    """Write a copy of a GGUF file with changed metadata ("__" in a name stands for "."); None removes a key.

    divisors: values of a further tensor rope_freqs.weight.
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
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FLOAT64_ONLY = Typed(1e300, gguf.GGUFValueType.FLOAT64)  # more than a float32 can be
LONG = Typed(1 << 31, gguf.GGUFValueType.UINT32)
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
    "text for a number": ({"llama__block_count": "two"}, "llama.block_count is two, not a positive number"),
    "more layers": ({"llama__block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
    "text as window": ({"llama__attention__sliding_window": "x"}, "attention.sliding_window = x is not supported"),
    "table as key": ({"llama__rope__dimension_sections": [1, 2]}, "rope.dimension_sections = [1 2] is not supported"),
    "table as type": ({"llama__rope__scaling__type": [1, 2]}, "rope.scaling.type '[1 2]' is not supported"),
    "huge": ({"llama__block_count": 2**31 - 1}, "llama.block_count is 2,147,483,647, but there are fewer tensors"),
    "fewer layers": ({"llama__block_count": 1}, "tensor blk.1.attn_norm.weight does not belong"),
    "width": ({"llama__feed_forward_length": 64}, "has the shape [96, 64], but the metadata require [64, 64]"),
    "epsilon": ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "is -1.0, not a positive float32"),
    "tokenizer": ({"tokenizer__ggml__model": "t5"}, "tokenizer 't5' is not supported"),
    "table as tokenizer": ({"tokenizer__ggml__model": [1, 2]}, "tokenizer '[1 2]' is not supported"),
    "table as switch": ({"tokenizer__ggml__add_bos_token": [1, 2]}, "add_bos_token is [1 2], not true or false"),
    "pre-tokenizer": (
        {"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__pre": "dbrx"}, "pre-tokenizer 'dbrx' is not supported"
    ),
    "fewer tokens": ({"tokenizer__ggml__tokens": ["a", "b"]}, "are not tables of 800 tokens"),
    "bos": ({"tokenizer__ggml__bos_token_id": 800}, "bos_token_id is 800, not the id of a token"),
    "range": ({"llama__context_length": LONG}, "context_length is 2147483648, not a positive number up to 2,147,"),
    "float range": ({"llama__rope__freq_base": FLOAT64_ONLY}, "llama.rope.freq_base is 1e.300, not a positive float32"),
    "factor of 0": (
        {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 0.0}, "factor is 0.0, not a positive"
    ),
    "adapter": ({"general__type": "adapter"}, "holds the type 'adapter', not a model; use the model's own file"),
    "float types": ({"tokenizer__ggml__token_type": [1.5] * 800}, "token_type has a value other than 1 to 6"),
    "bool types": ({"tokenizer__ggml__token_type": [True] * 800}, "token_type has a value other than 1 to 6"),
    "integer scores": ({"tokenizer__ggml__scores": [1] * 800}, "has no scores for its tokens"),
    "table as prefix": ({"tokenizer__ggml__add_space_prefix": [1, 2]}, "add_space_prefix is [1 2], not true or false"),
    "text as prefix": ({"tokenizer__ggml__add_space_prefix": "no"}, "add_space_prefix is no, not true or false"),
    "template": ({"tokenizer__chat_template": [1, 2]}, "tokenizer.chat_template is [1 2], not text"),
    "alignment": ({"general__alignment": 48}, "general.alignment is 48, not a power of two"),
}  # fmt: skip


@pytest.mark.parametrize("case", METADATA)
def test_import_refuses_metadata_that_config_cannot_express(make: Make, tmp_path: Path, case: str) -> None:
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
def test_import_refuses_other_files(tmp_path: Path, run_tool: RunTool, content: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    done = run_tool(SCRIPT, "--gguf", tmp_path / "x.gguf", "--output", tmp_path / "out", status=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_import_of_a_damaged_header_is_a_value_error(make: Make, tmp_path: Path) -> None:
    """A file that is cut off, or has random changes in its header, is refused or is still readable."""
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


def test_import_options_are_checked(make: Make, tmp_path: Path, run_tool: RunTool) -> None:
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
def test_import_refuses_rotary_divisors_that_are_no_numbers(make: Make, tmp_path: Path, value: float) -> None:
    file = rewritten(exported(make()), tmp_path / "changed.gguf", np.full(8, value, np.float32))
    with pytest.raises(ValueError, match=r"changed\.gguf: tensor rope_freqs\.weight holds NaN, infinity or"):
        imported(file)


@pytest.mark.parametrize("bos", ["<s x>", "<s:1>", "x:7", "$A", "<s>\n"])
def test_import_adds_bos_and_eos_of_any_spelling(make: Make, tmp_path: Path, bos: str) -> None:
    from transformers import AutoTokenizer

    model = make()
    source = exported(model)
    tokens = [bos if token == "<s>" else token for token in gguf_header.read_gguf(source).metadata[TOKENS]]
    changes: dict[str, Any] = {TOKENS: tokens, "tokenizer__ggml__add_eos_token": True}
    folder = imported(rewritten(source, tmp_path / "changed.gguf", **changes))
    tokenizer, plain = (AutoTokenizer.from_pretrained(path) for path in (folder, model))
    ids, other = plain("ab").input_ids[1:], plain("c").input_ids[1:]
    assert tokenizer("ab").input_ids == [1, *ids, 2]
    assert tokenizer("ab", "c").input_ids == [1, *ids, 2, 1, *other, 2]


def test_import_uses_the_first_of_equal_merges(make: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = make()
    write_byte_level_tokenizer(source, "gpt-2")
    file = exported(source)
    merges = gguf_header.read_gguf(file).metadata["tokenizer.ggml.merges"]
    folder = imported(rewritten(file, tmp_path / "changed.gguf", tokenizer__ggml__merges=[*merges, *merges[::-1]]))
    one, other = (AutoTokenizer.from_pretrained(path) for path in (source, folder))
    assert all(other(text).input_ids == one(text).input_ids for text in TEXTS)
    changed = rewritten(file, tmp_path / "one.gguf", tokenizer__ggml__merges=["ab", *merges])
    with pytest.raises(ValueError, match=r"one\.gguf has no merges of two tokens each"):
        import_gguf.main(str(changed), str(tmp_path / "one"))


def test_import_names_the_chat_templates_that_it_leaves_out(make: Make, tmp_path: Path, run_tool: RunTool) -> None:
    changes: dict[str, Any] = {"tokenizer__chat_template": "{{ x }}", "tokenizer__chat_template__tool_use": "{{ y }}"}
    file = rewritten(exported(make()), tmp_path / "changed.gguf", **changes)
    done = run_tool(SCRIPT, "--gguf", file, "--output", tmp_path / "out")
    assert done.stdout.endswith("; without the further chat templates tool_use\n")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ x }}"


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


def test_import_reads_version_2(make: Make) -> None:
    file = exported(make())
    content = file.read_bytes()
    assert content[4:8] == b"\3\0\0\0"
    file.write_bytes(content[:4] + b"\2" + content[5:])
    assert (imported(file) / "checkpoint.json").is_file()


def test_import_in_shards_is_the_same_checkpoint(make: Make, tmp_path: Path, run_tool: RunTool) -> None:
    file = exported(make())
    whole = imported(file)
    import_gguf.main(str(file), str(tmp_path / "shards"), max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 3
    run_tool("tools/checkpoint.py", "compare", whole, tmp_path / "shards")
