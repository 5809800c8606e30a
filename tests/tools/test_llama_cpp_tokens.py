"""Greedy tokens of llama.cpp equal those of transformers, for every kind of file that tools/export_gguf.py writes.

The prompts are texts, so tokenizers are compared too. A random model sometimes has two tokens of almost equal
probability, so that rounding decides between them; answers are compared up to such a token.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import export_gguf
import pytest
import torch
from conftest import small_texts
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from in_process import run_in_process
from llama_cpp_server import TEMPLATE, Ask, Make, Serve, edit, write_byte_level_tokenizer
from lora_adapters import make_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf")
pytestmark = [pytest.mark.slow, pytest.mark.integration]

NEW_TOKENS, TEXTS = 16, small_texts(6)
Change = Callable[[Path], Path]


def decisive_tokens(model: Any, tokenizer: Any, prompt: Any, noise: float) -> list[int]:
    """Return transformers' greedy tokens after a prompt (ids) up to a special token or an undecided one.

    A token is undecided if the second logit is less than `noise` behind the best, in standard deviations of the logits.
    llama.cpp ends at special tokens of certain names and hides others.
    """
    ids = torch.tensor([prompt])
    with torch.no_grad():
        output = model.eval().generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0,
            eos_token_id=None, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    logits, tokens = torch.cat(output.logits), output.sequences[0, ids.shape[1] :].tolist()
    best = logits.topk(2).values
    undecided = (best[:, 0] - best[:, 1] < noise * logits.std(-1)).tolist()
    special = {*tokenizer.added_tokens_decoder, model.generation_config.eos_token_id}
    end = next((at for at, token in enumerate(tokens) if undecided[at] or token in special), len(tokens))
    return tokens[:end]


def check_answers(ask: Ask, expected: dict[str, list[int]], share: float) -> None:
    """Compare llama.cpp's greedy tokens with the expected ones (text of a prompt -> tokens).

    share: minimum fraction of the tokens (NEW_TOKENS for each prompt) that are compared.
    """
    assert sum(map(len, expected.values())) >= share * NEW_TOKENS * len(expected)
    for text, tokens in expected.items():
        body = {"prompt": text, "n_predict": NEW_TOKENS, "temperature": 0, "return_tokens": True}
        assert ask("/completion", body)["tokens"][: len(tokens)] == tokens, text


def check_equal_tokens(folder: Path, file: Path, ask: Ask, noise: float = 1e-4, dequantised: bool = False) -> None:
    """Compare the greedy tokens after several texts.

    noise: as for `decisive_tokens`. dequantised: transformers computes with the weights of the GGUF file instead of
    those of the folder.
    """
    model = AutoModelForCausalLM.from_pretrained(
        file.parent if dequantised else folder, dtype=torch.float32, gguf_file=file.name if dequantised else None
    )
    tokenizer = AutoTokenizer.from_pretrained(exact_tokenizer_folder(folder))
    prompts = {text: tokenizer(text).input_ids for text in TEXTS}
    expected = {text: decisive_tokens(model, tokenizer, ids, noise) for text, ids in prompts.items()}
    check_answers(ask, expected, 0.6 if noise < 0.01 else 0.25)


THETA = {"rope_theta": 10000.0, "original_max_position_embeddings": 16}
LLAMA_3 = {**THETA, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "llama, one key per query": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama, one key for all queries": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama, biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama, wide heads": ("LlamaConfig", {"head_dim": 32}),
    "llama, narrow heads": ("LlamaConfig", {"head_dim": 8}),
    "llama, other base frequency": ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama, other epsilon": ("LlamaConfig", {"rms_norm_eps": 0.1}),
    "llama, linear": ("LlamaConfig", {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 4.0}}),
    "llama, yarn": ("LlamaConfig", {"rope_parameters": {**THETA, "rope_type": "yarn", "factor": 4.0}}),
    "llama 3": ("LlamaConfig", {"rope_parameters": LLAMA_3, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral, window over the context": ("MistralConfig", {"sliding_window": 4096}),
    "qwen 2": ("Qwen2Config", {}),
    "qwen 2, tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen 2, yarn": ("Qwen2Config", {"rope_parameters": {**THETA, "rope_type": "yarn", "factor": 4.0}}),
    "qwen 3": ("Qwen3Config", {"head_dim": 32}),
    "qwen 3, tied": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_tokens_equal_transformers_for_every_architecture(make: Make, serve: Serve, tmp_path: Path, case: str) -> None:
    kind, settings = ARCHITECTURES[case]
    folder, file = make(kind, **settings), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), "f32")
    check_equal_tokens(folder, file, serve(file))


# llama.cpp rounds activations to float16, bfloat16 or 8 bits before it multiplies them with such weights. With 8 bits,
# it chose tokens that were up to 0.03 standard deviations of the logits behind the best.
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", ["LlamaConfig", "Qwen2Config", "Qwen3Config"])
@pytest.mark.parametrize(("kind", "noise"), [("f16", 1e-3), ("bf16", 0.01), ("q8_0", 0.05), ("q4_0", 0.05)])
def test_tokens_equal_transformers_for_every_file_type(
    make: Make, serve: Serve, tmp_path: Path, case: str, tied: bool, kind: str, noise: float
) -> None:
    folder, file = make(case, tie_word_embeddings=tied, initializer_range=0.05), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), kind)
    check_equal_tokens(folder, file, serve(file), noise, dequantised=True)


def test_tokens_equal_transformers_for_q4_k_m(make: Make, serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which takes minutes to compile")
    folder, file = make(hidden_size=256, intermediate_size=512, initializer_range=0.05), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), "q4_k_m")
    check_equal_tokens(folder, file, serve(file), 0.05, dequantised=True)


def stored_as(dtype: torch.dtype, suffix: str = "safetensors") -> Change:
    def change(folder: Path) -> Path:
        state = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
        if suffix == "bin":
            (folder / "model.safetensors").unlink()
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors", {"format": "pt"})
        edit(folder / "config.json", dtype=str(dtype).removeprefix("torch."))
        return folder

    return change


def sharded(folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    return folder


def two_matrices(folder: Path) -> Path:
    edit(folder / "config.json", tie_word_embeddings=True)
    return folder


def merged(**options: Any) -> Change:
    def change(folder: Path) -> Path:
        adapter, out = make_adapter(folder, folder.parent / "adapter", **options), folder.parent / "merged"
        paths = ("--path_zhixi", folder, "--path_lora", adapter, "--path_sfted", out)
        run_in_process("tools/weight_diff.py", "merge", *paths)
        return out

    return change


def recovered(folder: Path) -> Path:
    tuned, diff, out = (folder.parent / name for name in ("tuned", "diff", "recovered"))
    shutil.copytree(folder, tuned)
    state = {name: value * 1.01 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, tuned / "model.safetensors", {"format": "pt"})
    pair = ("--path_raw", folder, "--path_tuned")
    run_in_process("tools/weight_diff.py", "make_diff", *pair, tuned, "--path_diff", diff)
    run_in_process("tools/weight_diff.py", "recover", *pair, out, "--path_diff", diff)
    return out


FOLDERS: dict[str, tuple[dict[str, object], Change]] = {
    "float16": ({}, stored_as(torch.float16)),
    "bfloat16": ({}, stored_as(torch.bfloat16)),
    ".bin": ({}, stored_as(torch.float32, "bin")),
    "shards": ({}, sharded),
    "own output of a model marked as tied": ({}, two_matrices),
    "merged": ({}, merged(target_modules=["q_proj", "k_proj", "down_proj"])),
    "merged and untied": ({"tie_word_embeddings": True}, merged(target_modules=["q_proj", "lm_head"])),
    "recovered": ({}, recovered),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_tokens_equal_transformers_for_every_folder(make: Make, serve: Serve, tmp_path: Path, case: str) -> None:
    settings, change = FOLDERS[case]
    folder, file = change(make(**settings)), tmp_path / "model.gguf"
    export_gguf.main(str(folder), str(file), "f32")
    check_equal_tokens(folder, file, serve(file))


def sentencepiece_with_added_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["<|tool|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)


def sentencepiece_alone(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


VOCABULARIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "SentencePiece": ("LlamaConfig", lambda folder: None),
    "SentencePiece, tokenizer.model alone": ("LlamaConfig", sentencepiece_alone),
    "SentencePiece, added tokens": ("LlamaConfig", sentencepiece_with_added_tokens),
    "byte level of LLaMA 3": ("LlamaConfig", partial(write_byte_level_tokenizer, name="llama-bpe")),
    "byte level of Qwen 2": ("Qwen2Config", lambda folder: None),
    "byte level of Qwen 3": ("Qwen3Config", lambda folder: None),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_answers_equal_transformers_for_every_vocabulary_and_its_chat_template(
    make: Make, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kind, write = VOCABULARIES[case]
    folder, file = make(kind, vocab_size=816), tmp_path / "model.gguf"
    write(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    export_gguf.main(str(folder), str(file), "f32")
    ask, tokenizer = serve(file), AutoTokenizer.from_pretrained(exact_tokenizer_folder(folder))
    check_equal_tokens(folder, file, ask)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = {}
    for text in TEXTS:
        messages = [{"role": "user", "content": text}]
        prompt = ask("/apply-template", {"messages": messages})["prompt"]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        expected[prompt] = decisive_tokens(model, tokenizer, ids, 1e-4)
    check_answers(ask, expected, 0.6)
