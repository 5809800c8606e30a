"""Download, recover, merge and serve a model as published in 2023: ids, logits, answers and F1 equal the original's.

A small LLaMA with LLaMA's own tokenizer is tuned, then an adapter on it, both with finetune.py. They are converted to
the files of 2023 (float16 base and difference, adapter of PEFT 0.3), downloaded from a local hub, recovered and merged.
"""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
import torch
from chat_prompts.prompt_encoding import instruction_messages
from conftest import RunScript
from demo_pages import model_loading, text_generation, web_page
from demo_pages.text_generation import Decoding
from demo_world.tiny_llama import make_model
from extraction.extraction_form import prompts_for_types
from extraction.extraction_schema import check_schema
from extraction_metrics.answer_scores import score_answers
from published_folders import adapter_files, download_all, model_files
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BASE, DIFF, LORA = "someone/llama-hf", "someone/model-diff-fp16", "zjunlp/zhixi-13b-lora"
PUBLISHED_TARGETS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
TYPES = {"en": ["person", "place"], "zh": ["人物", "地点"]}
TEXTS = {"en": "{} was born in {}.", "zh": "{}生于{}。"}
TOKENS = 64  # longer than every answer
pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1800)]
Row = dict[str, str]


def extraction_rows(shift: int) -> list[Row]:
    """Return nine English rows and three Chinese ones, in the default wording of /extract.

    The places are shifted against the persons, so rows with another shift have the same names in other pairs.
    """
    draw = random.Random(5)
    syllables = [a + b for a in "bdfklmnrstv" for b in "aeiou"]
    names = {"en": [["".join(draw.choices(syllables, k=3)).title() for _ in range(9)] for _ in range(2)]}
    names["zh"] = [["".join(draw.choices(part, k=3)) for _ in range(3)] for part in ("山水文华明光", "东西南北城江")]
    rows = []
    for language, (persons, places) in names.items():
        types = TYPES[language]
        for person, place in zip(persons, places[shift:] + places[:shift], strict=True):
            text = TEXTS[language].format(person, place)
            instruction = prompts_for_types("ner", check_schema("ner", types), text)[0].instruction
            answer = json.dumps({types[0]: [person], types[1]: [place]}, ensure_ascii=False)
            rows.append({"instruction": instruction, "input": text, "output": answer})
    return rows


ROWS = extraction_rows(0)


class Models(NamedTuple):
    """The original model, the downloaded folders, and the recovered and merged models."""

    base: Path
    tuned: Path
    adapter: Path
    downloaded: dict[str, Path]
    recovered: Path
    merged: Path
    rows: Path  # file
    before: list[str]  # answers of the tuned model with its adapter


def write_rows(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def to_float16(folder: Path) -> dict[str, torch.Tensor]:
    """Round a checkpoint to float16 in place, as LLaMA was published; return its weights."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def run_ie(run_script: RunScript, rows: Path, output: Path, *model: object) -> tuple[list[str], dict[str, Any]]:
    """Return the answers that ie_run.py writes, and the scores that ie_eval.py writes for them."""
    scores = output.with_suffix(".scores.json")
    run_script("finetune/ie_run.py", *model, "--data_path", rows, "--output", output, "--max_new_tokens", TOKENS)
    run_script("finetune/ie_eval.py", "--predictions", output, "--output", scores)
    answers = [json.loads(line)["prediction"] for line in output.read_text(encoding="utf-8").splitlines()]
    return answers, json.loads(scores.read_text())


def f1(answers: list[str]) -> float:
    return score_answers([(answer, row["output"]) for answer, row in zip(answers, ROWS, strict=True)])["entity"]["f1"]


@pytest.fixture(scope="module")
def tokenizer_model(shared_data: Path) -> Path:
    path = shared_data / "llama/tokenizer.model"
    if not path.is_file():
        pytest.skip("LLaMA's tokenizer.model is not here")
    return path


@pytest.fixture(scope="module")
def models(tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory, run_script: RunScript) -> Models:
    root = tmp_path_factory.mktemp("scores")
    base, tuned, adapter, recovered, merged = (root / n for n in ("base", "tuned", "lora", "recovered", "merged"))
    run_script(
        "tools/build_tokenizer.py", "--tokenizer_model", tokenizer_model, "--output_dir", root / "tokenizer"
    )  # fmt: skip
    make_model(
        str(root / "tokenizer"), str(base), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=512, initializer_range=0.05,
    )  # fmt: skip
    rows, other = write_rows(root / "rows.jsonl", ROWS), write_rows(root / "other.jsonl", extraction_rows(1))
    tune = (
        "finetune/finetune.py", "--prompt_template_name", "alpaca", "--batch_size", 12, "--micro_batch_size", 12,
        "--learning_rate", 1e-2, "--cutoff_len", 256, "--save_strategy", "no", "--report_to", "none", "--seed", 0,
        "--cache_dir", root / "cache",
    )  # fmt: skip
    run_script(
        *tune, "--base_model", base, "--data_path", other, "--output_dir", tuned, "--method", "full", "--num_epochs",
        80, timeout=1200,
    )  # fmt: skip
    raw, state = to_float16(base), to_float16(tuned)
    run_script(
        *tune, "--base_model", tuned, "--data_path", rows, "--output_dir", adapter, "--num_epochs", 80, "--lora_r", 16,
        "--lora_alpha", 32, "--lora_dropout", 0, "--lora_target_modules", PUBLISHED_TARGETS, timeout=1200,
    )  # fmt: skip
    before, _ = run_ie(run_script, rows, root / "before.jsonl", "--base_model", tuned, "--lora_weights", adapter)

    config = json.loads((base / "config.json").read_text())
    difference = {name: value - raw[name] for name, value in state.items()}  # computed in float16
    files = {
        BASE: model_files(raw, config, tokenizer_model),
        DIFF: model_files(difference, config, tokenizer_model, is_diff=True),
        LORA: adapter_files(adapter),
    }
    folders = download_all(files, root, run_script)
    run_script(
        "tools/weight_diff.py", "recover", "--path_raw", folders[BASE], "--path_diff", folders[DIFF], "--path_tuned",
        recovered, "--is_fp16",
    )  # fmt: skip
    run_script(
        "tools/export_hf_checkpoint.py", "--base_model", recovered, "--lora_model", folders[LORA], "--output_dir",
        merged,
    )  # fmt: skip
    return Models(base, tuned, adapter, folders, recovered, merged, rows, before)


def test_original_model_extracts(models: Models) -> None:
    assert f1(models.before) > 0.9


def test_recovered_weights_are_the_float16_sums_bit_for_bit(models: Models) -> None:
    """Each weight is within two roundings of the tuned model's weight: those of the difference and of the sum."""
    raw, tuned = (load_file(folder / "model.safetensors") for folder in (models.base, models.tuned))
    recovered = load_file(models.recovered / "model.safetensors")
    for name, value in tuned.items():
        expected = raw[name] + (value - raw[name])
        assert torch.equal(recovered[name].view(torch.int16), expected.view(torch.int16)), name
        largest = torch.maximum(value.abs(), (value - raw[name]).abs()).float()
        assert ((recovered[name].float() - value.float()).abs() <= largest * 2**-10).all(), name


def alpaca_ids(row: Row, oracle: Any, shared_data: Path) -> list[int]:
    """Return BOS and SentencePiece's ids of the published prompt."""
    prompt = json.loads((shared_data / "templates/alpaca.json").read_text(encoding="utf-8"))["prompt_input"]
    return [1, *oracle.encode(prompt.format(**row))]


@pytest.mark.parametrize("way", ["merged", "attached"])
def test_demo_has_the_original_ids_logits_and_answers(
    models: Models, tokenizer_model: Path, shared_data: Path, way: str
) -> None:
    oracle = sentencepiece.SentencePieceProcessor(str(tokenizer_model))
    before = model_loading.load(str(models.tuned), str(models.adapter))
    folder, adapter = (models.merged, "") if way == "merged" else (models.recovered, str(models.downloaded[LORA]))
    checkpoint = model_loading.load(str(folder), adapter)
    answers = []
    for row in ROWS:
        ids = checkpoint.encoder.prompt_ids(instruction_messages(row["instruction"], row["input"]))
        assert ids == before.encoder.prompt_ids(instruction_messages(row["instruction"], row["input"]))
        assert ids == alpaca_ids(row, oracle, shared_data)
        schema = ", ".join(TYPES["en" if row["input"].isascii() else "zh"])
        assert web_page.extraction_ids(checkpoint, {}, "ner", schema, row["input"]) == ids
        answers.append(text_generation.generate(checkpoint, ids, Decoding(TOKENS)).text)
        whole = torch.tensor([[*ids, *oracle.encode(answers[-1])]])
        with torch.no_grad():
            expected, logits = (each.model.float()(whole).logits for each in (before, checkpoint))
        # Weights are rounded to float16, twice if the adapter is merged; the largest logits are about 15.
        torch.testing.assert_close(logits, expected, rtol=0, atol=0.02)
    assert answers == models.before


def test_ie_run_has_the_original_answers_and_scores(models: Models, run_script: RunScript, tmp_path: Path) -> None:
    ways: dict[str, tuple[object, ...]] = {
        "merged": ("--base_model", models.merged),
        "attached": ("--base_model", models.recovered, "--lora_weights", models.downloaded[LORA]),
    }
    for way, options in ways.items():
        answers, scores = run_ie(run_script, models.rows, tmp_path / f"{way}.jsonl", *options)
        assert answers == models.before
        assert scores["entity"]["f1"] == f1(models.before)
    bare = ("--base_model", models.recovered, "--prompt_template_name", "alpaca")
    _, scores = run_ie(run_script, models.rows, tmp_path / "recovered.jsonl", *bare)
    assert scores["entity"]["f1"] < 0.75  # the adapter is needed


def test_server_has_the_original_answers_and_scores(
    models: Models, start_server: Any, run_script: RunScript, tmp_path: Path
) -> None:
    """The server uses the files' dtype, float16, and the template that the download added."""
    server = start_server(models.merged)
    log = server.log.read_text()
    assert "has no chat template" not in log
    assert f"notice: {models.merged}: no extraction.json, so /extract asks in its default wording" in log
    output = tmp_path / "batch.jsonl"
    run_script(
        "inference/batch.py", "--url", server.url, "--input", models.rows, "--output", output, "--temperature", 0,
        "--max_tokens", TOKENS,
    )  # fmt: skip
    batch = [json.loads(line)["generated_text"] for line in output.read_text(encoding="utf-8").splitlines()]
    assert batch == models.before
    single = [
        server.generate(row["instruction"], row["input"], temperature=0, max_tokens=TOKENS)["generated_text"]
        for row in ROWS
    ]
    assert single == models.before
    extracted = []
    for row in ROWS:
        schema = TYPES["en" if row["input"].isascii() else "zh"]
        status, found = server.post("/extract", {"text": row["input"], "task": "ner", "schema": schema})
        assert (status, found["error"], found["complete"]) == (200, None, True)
        answer: dict[str, list[str]] = {}
        for entity in found["entities"]:
            answer.setdefault(entity["type"], []).append(entity["name"])
            begin, end = entity["offsets"][0]
            assert row["input"][begin:end] == entity["name"]
        extracted.append(json.dumps(answer, ensure_ascii=False))
    assert f1(extracted) == f1(batch) == f1(models.before)
