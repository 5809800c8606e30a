"""tools/import_gguf.py: importing inverts exporting, bit for bit."""

import json
from pathlib import Path
from typing import Any

import export_gguf
import import_gguf
import numpy as np
import pytest
import torch
from gguf_files import gguf_header
from gguf_rewriting import exported, imported, rewritten, write_types
from in_process import RunTool
from llama_cpp_server import FAMILIES, Make, edit, write_byte_level_tokenizer
from safetensors.torch import load_file
from tokenizer_files.tokenizer_check import HARD_TEXTS

gguf = pytest.importorskip("gguf")

TOKENS = "tokenizer.ggml.tokens"
SCRIPT = "tools/import_gguf.py"
TEXTS = [*HARD_TEXTS, "½ Ⅷ 12345", "a  b\n\n\nc", "<|eot_id|> x", "don't I'LL"]


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
def test_export_of_imported_folder_has_the_same_tensors(make: Make, kind: str, tmp_path: Path) -> None:
    file = exported(make(initializer_range=0.05), kind)
    folder = imported(file, dtype="float32")
    again = tmp_path / "again.gguf"
    export_gguf.main(str(folder), str(again), kind)
    first, second = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (file, again))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.tensor_type == second[name].tensor_type
        assert np.array_equal(tensor.data, second[name].data), name


@pytest.mark.integration
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


def test_import_names_the_chat_templates_that_it_does_not_write(make: Make, tmp_path: Path, run_tool: RunTool) -> None:
    changes: dict[str, Any] = {"tokenizer__chat_template": "{{ x }}", "tokenizer__chat_template__tool_use": "{{ y }}"}
    file = rewritten(exported(make()), tmp_path / "changed.gguf", **changes)
    done = run_tool(SCRIPT, "--gguf", file, "--output", tmp_path / "out")
    assert done.stdout.endswith("; further chat templates are not imported: tool_use\n")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ x }}"


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
