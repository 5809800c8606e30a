"""Convert, recover, merge and serve small models with the files of 2023: ids, logits and answers equal the original's.

Original LLaMA -> converted; difference in .bin shards from a hub -> recovered; adapter of PEFT 0.3 from the hub ->
merged; then demo, ie_run.py and server. The folders have a tokenizer.model, no tokenizer.json and no chat template.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
import torch
from chat_prompts.prompt_encoding import instruction_messages
from conftest import REPOSITORY, RunScript
from demo_pages import model_loading, text_generation
from demo_pages.text_generation import Decoding
from extraction.extraction_form import prompts_for_types
from extraction.extraction_schema import check_schema
from in_process import run_in_process
from original_llama import TINY, random_state, write_original
from published_folders import adapter_files, download_all, model_files
from transformers import AutoModelForCausalLM

DIFF, LORA = "someone/model-13b-diff", "zjunlp/zhixi-13b-lora"
PROMPT = (REPOSITORY.parent / "shared/data/templates/alpaca.json", "prompt_input")
ALPACA_NAME = "finetune/templates/alpaca.jinja"
ALPACA = REPOSITORY / ALPACA_NAME
ROW = {"instruction": "Name  the {entities} <s>.", "input": "  Two  spaces, 山水。", "output": ""}
EXTRACTION: dict[str, Any] = {"task": "ner", "text": "Ann is here.", "schema": ["person"], "max_tokens": 40}
pytestmark = pytest.mark.integration


class Published(NamedTuple):
    """The downloaded and the computed folders, and the weights and logits of the original models."""

    base: Path
    recovered: Path
    adapter: Path
    merged: Path
    tuned_state: dict[str, torch.Tensor]
    logits: torch.Tensor  # of the tuned model with its adapter, for IDS
    oracle: Any


IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def published(
    tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, run_script: RunScript
) -> Iterator[Published]:
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("published")
    params = TINY | {"n_heads": 2}
    state = random_state(params, 800, torch.float16)
    write_original(root / "LLaMA/13B", params, state, tiny_tokenizer / "tokenizer.model")
    run_script(
        "tools/convert_llama.py", "--input_dir", root / "LLaMA/13B", "--model_size", "auto", "--output_dir",
        root / "base",
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tuned = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        logits = model.eval()(IDS).logits
    model.save_pretrained(str(root / "lora"))

    difference = {name: value - raw[name] for name, value in tuned.items()}
    diff = model_files(difference, config, tiny_tokenizer / "tokenizer.model", is_diff=True)
    folders = download_all({DIFF: diff, LORA: adapter_files(root / "lora")}, root, run_script)
    run_script(
        "tools/weight_diff.py", "recover", "--path_raw", root / "base", "--path_diff", folders[DIFF], "--path_tuned",
        root / "recovered",
    )  # fmt: skip
    run_script(
        "tools/weight_diff.py", "merge", "--path_zhixi", root / "recovered", "--path_lora", folders[LORA],
        "--path_sfted", root / "merged",
    )  # fmt: skip
    oracle = sentencepiece.SentencePieceProcessor(str(tiny_tokenizer / "tokenizer.model"))
    yield Published(root / "base", root / "recovered", folders[LORA], root / "merged", tuned, logits, oracle)


def expected_prompt(
    published: Published, instruction: str = ROW["instruction"], input: str = ROW["input"]
) -> list[int]:
    """Return BOS and SentencePiece's ids of the published alpaca prompt."""
    path, name = PROMPT
    if not path.is_file():
        pytest.skip("the published prompt file is not here")
    text = json.loads(path.read_text(encoding="utf-8"))[name].format(instruction=instruction, input=input)
    return [1, *published.oracle.encode(text)]


def greedy(published: Published, ids: list[int], tokens: int) -> str:
    """Return the recovered model's answer to a prompt, computed by transformers."""
    return text_generation.generate(model_loading.load(str(published.recovered)), ids, Decoding(tokens)).text


def test_recovered_and_merged_models_have_the_original_logits(published: Published) -> None:
    recovered = AutoModelForCausalLM.from_pretrained(published.recovered, dtype=torch.float32)
    for name, value in recovered.state_dict().items():
        torch.testing.assert_close(value, published.tuned_state[name], rtol=0, atol=1e-6)
    merged = AutoModelForCausalLM.from_pretrained(published.merged, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(IDS).logits, published.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["merged", "adapter"])
def test_demo_asks_with_the_ids_of_the_published_prompt(published: Published, way: str) -> None:
    base, adapter = (published.merged, "") if way == "merged" else (published.recovered, str(published.adapter))
    checkpoint = model_loading.load(str(base), adapter)
    assert checkpoint.encoder.prompt_ids(instruction_messages(ROW["instruction"], ROW["input"])) == expected_prompt(
        published
    )
    assert checkpoint.encoder.stop_ids == [2]
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.model(IDS).logits, published.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("template", [ALPACA, PROMPT[0]], ids=["Jinja", "JSON"])
def test_template_file_gives_a_model_without_one_the_published_prompt(
    published: Published, tmp_path: Path, template: Path
) -> None:
    """A demo and ie_run.py use the file; without the option, the prompt is plain text, and a notice has the remedy."""
    expected = expected_prompt(published)
    checkpoint = model_loading.load(str(published.recovered), template_path=str(template))
    assert checkpoint.encoder.prompt_ids(instruction_messages(ROW["instruction"], ROW["input"])) == expected
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    command = ("finetune/ie_run.py", "--base_model", published.recovered, "--data_path", rows, "--output", out,
               "--max_new_tokens", 8)  # fmt: skip
    assert "chat template" not in run_in_process(*command, "--prompt_template_name", template).stderr
    assert json.loads(out.read_text())["prediction"] == greedy(published, expected, 8)
    if template == ALPACA:
        warning = run_in_process(*command).stderr
        remedy = (
            f"python tools/set_template.py --model_path {published.recovered} --template_path {ALPACA_NAME} --output"
        )
        assert f"notice: {published.recovered} has no chat template, so instructions are sent as plain text" in warning
        assert f": --prompt_template_name alpaca, or add it: {remedy}" in warning


def test_server_with_a_template_file_and_ie_run_give_the_demos_answers(
    published: Published, start_server: Any, run_script: RunScript, tmp_path: Path
) -> None:
    """The recovered base is served with --template_path; the adapter beside it has its own template."""
    checkpoint = model_loading.load(str(published.merged))
    prompt = checkpoint.encoder.prompt_ids(instruction_messages(ROW["instruction"], ROW["input"]))
    answer = text_generation.generate(checkpoint, prompt, Decoding(8)).text
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    run_in_process(
        "finetune/ie_run.py", "--base_model", published.recovered, "--lora_weights", published.adapter, "--data_path",
        rows, "--output", tmp_path / "out.jsonl", "--max_new_tokens", 8,
    )  # fmt: skip
    assert json.loads((tmp_path / "out.jsonl").read_text())["prediction"] == answer

    server = start_server(
        published.recovered, "--dtype", "float32", "--template_path", ALPACA, "--lora-modules",
        f"ie={published.adapter}",
    )  # fmt: skip
    assert "has no chat template" not in server.log.read_text()
    body = {"instruction": ROW["instruction"], "input": ROW["input"], "parameters": {"temperature": 0, "max_tokens": 8}}
    assert server.post("/generate", body | {"model": "ie"})[1]["generated_text"] == answer
    expected, before = expected_prompt(published), server.metric_sum("prompt_tokens_total")
    of_base = server.post("/generate", body)[1]["generated_text"]
    assert server.metric_sum("prompt_tokens_total") - before == len(expected)
    completion = {"prompt": expected, "temperature": 0, "max_tokens": 8, "model": str(published.recovered)}
    assert of_base == server.post("/v1/completions", completion)[1]["choices"][0]["text"]
    options = ("--url", server.url, "--temperature", 0, "--max_tokens", 8)
    run_script("inference/batch.py", "--input", rows, "--output", tmp_path / "batch.jsonl", *options)
    assert json.loads((tmp_path / "batch.jsonl").read_text())["generated_text"] == of_base

    status, tokens = server.post("/tokenize", {"prompt": "  Two  spaces", "add_special_tokens": True})
    assert (status, tokens["tokens"]) == (200, [1, *published.oracle.encode("  Two  spaces")])
    types = check_schema("ner", EXTRACTION["schema"])
    asked = prompts_for_types("ner", types, EXTRACTION["text"], "auto", {})[0].instruction
    for model in ({}, {"model": "ie"}):
        before = server.metric_sum("prompt_tokens_total")
        status, extracted = server.post("/extract", EXTRACTION | model)
        assert (status, extracted["error"]) == (200, None)
        expected = expected_prompt(published, asked, EXTRACTION["text"])
        assert server.metric_sum("prompt_tokens_total") - before == len(expected)
