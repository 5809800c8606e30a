"""tools/quantize.py: rows get the ids of tuning, scores equal other implementations, folders are complete."""

import importlib.util
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import quantize
import torch
from chat_prompts.prompt_encoding import PromptEncoder
from checkpoint_seals.seal_writer import kind_of
from conftest import QUANTISED, REPOSITORY, RunScript, needs_bitsandbytes
from extraction_metrics.answer_scores import score_answers
from in_process import RunTool
from json_rows.instruction_rows import messages_of
from llama_cpp_server import write_model
from quantization import quantization_inputs, quantization_methods, quantized_score
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = "tools/quantize.py"
OTHER = Path(os.environ.get("KNOWLM_QUANTIZE_PYTHON") or REPOSITORY / ".venv-quantize/bin/python")
TEMPLATES = ("alpaca", "alpaca_short", "llama-2")
ANSWER = '{"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}'
ROWS: list[dict[str, Any]] = [
    {"instruction": "Extract the relations.", "input": "Ann Lee was born in Oslo.", "output": ANSWER},
    {"instruction": "抽取实体。", "input": "李白生于碎叶。", "output": '{"人物": ["李白"], "地点": ["碎叶"]}'},
    {"instruction": "Say </s> and <s>.", "input": "[INST] {{ x }} {% y %} {0} %s </s>", "output": "</s> <s><unk>"},
    {"instruction": "No input.", "output": " two  spaces\nand a line"},
    {
        "messages": [
            {"role": "user", "content": "Who?", "input": ""},
            {"role": "assistant", "content": "Ann </s>."},
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "Oslo."},
        ]
    },
]


def template_text(name: str) -> str:
    return (REPOSITORY / f"finetune/templates/{name}.jinja").read_text(encoding="utf-8")


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tiny checkpoint with a template, extraction.json and run.json, as after tuning."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("tuned") / "merged")
    (folder / "chat_template.jinja").write_text(template_text("alpaca"))
    (folder / "extraction.json").write_text("{}")
    (folder / "run.json").write_text('{"script": "before"}')
    return folder


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


@pytest.mark.parametrize("template", TEMPLATES)
def test_calibration_ids_equal_those_of_tuning(tiny_tokenizer: Path, template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.chat_template = template_text(template)
    prompts = PromptEncoder(tokenizer)
    for row in ROWS:
        messages = messages_of(row)
        example = quantization_inputs.encode_row(prompts, row, tiny_tokenizer)
        assert example.prompt == prompts.prompt_ids(messages[:-1])
        (turn,) = prompts.last_turns([messages])
        assert example.answer == turn.answer + turn.end
        assert example.answer.count(tokenizer.eos_token_id) == 1
        assert example.expected == messages[-1]["content"]


def test_rows_of_text_are_encoded_without_template(tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    prompts = PromptEncoder(tokenizer)
    example = quantization_inputs.encode_row(prompts, {"text": "Ann Lee </s> 李白"}, tiny_tokenizer)
    assert example.prompt == [tokenizer.bos_token_id]
    assert tokenizer.decode(example.answer) == "Ann Lee </s> 李白"
    assert tokenizer.eos_token_id not in example.answer
    with pytest.raises(ValueError, match=r"no chat_template\.jinja .*set_template"):
        quantization_inputs.encode_row(prompts, ROWS[0], tiny_tokenizer)


def test_template_that_changes_the_question_or_fails_is_refused(tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1].content }}"
    prompts = PromptEncoder(tokenizer)
    with pytest.raises(ValueError, match="renders a question differently once it has an answer"):
        quantization_inputs.encode_row(prompts, ROWS[0], tiny_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('not this') }}"
    prompts = PromptEncoder(tokenizer)
    with pytest.raises(ValueError, match=r"cannot render these messages: not this.*set_template"):
        quantization_inputs.encode_row(prompts, ROWS[0], tiny_tokenizer)


def test_long_rows_are_truncated_for_calibration_and_omitted_from_scores(model: Path, tokenizer: Any) -> None:
    whole = quantization_inputs.encode_row(PromptEncoder(tokenizer), ROWS[0], model)
    ids = whole.prompt + whole.answer
    assert quantization_inputs.truncate_examples([whole], len(ids) - 3) == [ids[:-3]]
    assert quantization_inputs.without_long_examples([whole], len(ids), "x") == [whole]
    with pytest.raises(ValueError, match=r"rows\.jsonl is empty or longer than .* --max_length"):
        quantization_inputs.without_long_examples([whole], len(ids) - 1, "rows.jsonl")


def test_samples_are_seeded_and_in_file_order(tmp_path: Path) -> None:
    rows = [{"text": str(number)} for number in range(50)]
    lines = written(tmp_path / "a.jsonl", rows)
    listed = tmp_path / "a.json"
    listed.write_text("\n" + json.dumps(rows, indent=1))

    def drawn(path: Path, seed: int) -> list[int]:
        sample, seen = quantization_inputs.sample_rows(path, 8, seed)
        assert seen == 50
        return [int(row["text"]) for row in sample]

    assert quantization_inputs.sample_rows(lines, 50, 1) == (rows, 50)
    assert drawn(lines, 1) == drawn(lines, 1) == drawn(listed, 1) != drawn(lines, 2)
    assert drawn(lines, 1) == sorted(set(drawn(lines, 1)))
    counts = [0] * 50
    for seed in range(1000):
        for number in drawn(lines, seed):
            counts[number] += 1
    assert min(counts) > 100  # 160 expected of each
    assert max(counts) < 220


def test_scores_equal_those_of_transformers_and_scorer(
    model: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [quantization_inputs.encode_row(PromptEncoder(tokenizer), row, model) for row in ROWS]
    pairs: list[tuple[str, str]] = []
    score_pairs = quantized_score.extraction_scores

    def record_pairs(found: list[tuple[str, str]]) -> quantized_score.Scores:
        pairs.extend(found)
        return score_pairs(found)

    monkeypatch.setattr(quantized_score, "extraction_scores", record_pairs)
    figures = quantized_score.score(model, tokenizer, examples)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    losses, tokens = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.prompt + example.answer])
        labels = torch.where(torch.arange(ids.shape[1]) < len(example.prompt), -100, ids)
        losses += loaded(ids, labels=labels).loss.item() * len(example.answer)
        tokens += len(example.answer)
    assert figures["perplexity"] == pytest.approx(math.exp(losses / tokens), rel=1e-4)
    assert figures["bytes"] == (model / "model.safetensors").stat().st_size

    assert [expected for _, expected in pairs] == [ROWS[0]["output"], ROWS[1]["output"]]  # only these are extractions
    ids = torch.tensor([examples[1].prompt])  # the shorter one, which was padded
    longest = max(len(example.answer) for example in examples[:2])
    alone = loaded.generate(ids, do_sample=False, max_new_tokens=longest + longest // 2 + 16, pad_token_id=0)
    assert pairs[1][0] == tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)
    expected = score_answers(pairs)
    assert figures["extraction_rows"] == 2
    assert (figures["entity_f1"], figures["triple_f1"]) == (expected["entity"]["f1"], expected["triple"]["f1"])
    scores = score_pairs([(ANSWER, ANSWER), ("{}", ROWS[1]["output"])])
    assert scores == {"entity_f1": 0.0, "triple_f1": 1.0, "exact": 0.5, "parsed": 1.0}


def test_model_with_capped_attention_scores_is_measured_with_the_cap(tiny_tokenizer: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"head_dim": 16, "attn_logit_softcapping": 0.01, "query_pre_attn_scalar": 1}
    folder = write_model(tmp_path / "gemma", tiny_tokenizer, "Gemma2Config", **settings)
    ids = torch.arange(10, 30)[None]
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    sdpa = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    with torch.no_grad():
        expected, wrong = eager(ids).logits, sdpa(ids).logits
        found = quantization_methods.load_model(folder, "float32", on_cpu=True)(ids).logits
    assert torch.equal(found, expected) and (wrong - expected).abs().max() > 1e-4


def test_score_table_has_measured_columns_only() -> None:
    before = {"bytes": 6_280_000, "perplexity": 1.25, "entity_f1": 0.5, "exact": 0.25}
    after = {"bytes": 2_480_000, "perplexity": 1.5, "entity_f1": 0.4, "exact": 0.2}
    assert quantized_score.score_table(before, after).splitlines() == [
        "           weights  perplexity   entity F1       exact",
        "before     6.28 MB      1.2500      0.5000      0.2500",
        "after      2.48 MB      1.5000      0.4000      0.2000",
    ]
    counted = quantized_score.score_table(before | {"extraction_rows": 3}, after)
    assert counted.splitlines()[3] == "F1 and exact: of the 3 rows whose answers are entities or triples"
    sizes = quantized_score.score_table({"bytes": 1_000_000}, {"bytes": 500_000})
    assert sizes.splitlines() == ["           weights", "before     1.00 MB", "after      0.50 MB"]


def test_choose_group_size_returns_largest_size_that_fits_all_layers(model: Path) -> None:
    layers = quantization_methods.linear_layers(model)
    assert layers["model.layers.1.mlp.down_proj"] == (64, 128)
    assert len(layers) == 14  # seven in each of two layers, not lm_head
    assert quantization_methods.choose_group_size(layers, 0, model) == 64
    assert quantization_methods.choose_group_size(layers, 32, model) == 32
    with pytest.raises(
        ValueError, match=r"layers\.0\.self_attn\.q_proj has 64 inputs, .* group size 128; use --group_size 64"
    ):
        quantization_methods.choose_group_size(layers, 128, model)
    with pytest.raises(ValueError, match="--group_size 48 has no kernel"):
        quantization_methods.choose_group_size(layers, 48, model)
    with pytest.raises(ValueError, match=r"odd has 200 inputs, not a multiple of the group size 32; use --method fp8"):
        quantization_methods.choose_group_size({"even": (8, 64), "odd": (8, 200)}, 0, model)


@needs_bitsandbytes
@pytest.mark.parametrize("method", ["nf4", pytest.param("bnb8", marks=pytest.mark.slow)])
@pytest.mark.integration
def test_bitsandbytes_folders_are_complete(model: Path, tmp_path: Path, run_script: RunScript, method: str) -> None:
    """nf4 is run with scores, bnb8 without."""
    rows, out = written(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    more = ("--eval_path", rows) if method == "nf4" else ()
    given = ("--model_path", model, "--output_dir", out, "--method", method)
    done = run_script(SCRIPT, *given, *more, env={"PYTHONPATH": QUANTISED, "OMP_NUM_THREADS": 1})
    assert done.stderr == ""
    assert done.stdout.startswith(f"{out}: bitsandbytes")
    check_folder(model, out, done.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out"}
    if more:
        assert done.stdout.splitlines()[1] == "measured on 5 of 5 held-out rows"


def check_folder(model: Path, out: Path, printed: str) -> None:
    """Check a quantised folder: small files, embedding and output matrix are unchanged, run.json has the figures."""
    names = {path.name for path in model.iterdir()}
    assert {path.name for path in out.iterdir()} == names
    for name in names - {"config.json", "model.safetensors", "run.json"}:
        assert (out / name).read_bytes() == (model / name).read_bytes()
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    assert kind_of(out) == "quantised"
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] in ("bitsandbytes", "compressed-tensors")
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(before[name], after[name])
    packed = after.get("model.layers.0.mlp.up_proj.weight")
    assert packed is None or packed.dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn)

    run = json.loads((out / "run.json").read_text())
    assert run["seed"] == 42
    assert run["parents"] == {"model": {"script": "before"}}
    assert run["versions"].keys() >= {"torch", "transformers", "bitsandbytes"}
    assert list(map(len, run["data"].values())) == [64] * len(run["data"])
    scores = run["scores"]
    assert printed.endswith(quantized_score.score_table(scores["before"], scores["after"]) + "\n")
    assert scores["after"]["bytes"] < scores["before"]["bytes"]
    if "perplexity" in scores["before"]:
        assert scores["after"]["perplexity"] == pytest.approx(scores["before"]["perplexity"], rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(
    not OTHER.is_file(), reason="no llmcompressor: KNOWLM_QUANTIZE_PYTHON or .venv-quantize names its environment"
)
@pytest.mark.parametrize("method", ["gptq", "awq", "int8", "fp8"])
def test_compressed_folders_are_complete_and_load(
    model: Path, tmp_path: Path, method: str, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """quantize.py runs in the environment of llmcompressor; the result has the same perplexity in this one."""
    rows, out = written(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    monkeypatch.setattr(sys, "executable", str(OTHER))
    given = ("--model_path", model, "--output_dir", out, "--method", method, "--eval_path", rows, "--data_path", rows)
    done = run_script(SCRIPT, *given, cwd=tmp_path)
    monkeypatch.undo()
    check_folder(model, out, done.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "out"}
    tokenizer = AutoTokenizer.from_pretrained(out)
    examples = [quantization_inputs.encode_row(PromptEncoder(tokenizer), row, out) for row in ROWS]
    here = quantized_score.score(out, tokenizer, examples)
    there = json.loads((out / "run.json").read_text())["scores"]["after"]
    assert here["perplexity"] == pytest.approx(there["perplexity"], rel=1e-3)


def test_missing_llmcompressor_names_its_environment(model: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("llmcompressor"):
        pytest.skip("llmcompressor is installed here")
    with pytest.raises(ValueError, match=r"\.venv-quantize.* -r requirements-quantize\.txt") as raised:
        quantize.main(str(model), str(tmp_path / "out"), "fp8")
    assert "\n" not in str(raised.value)
    assert (REPOSITORY / "requirements-quantize.txt").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "int4"}, "--method int4 is unknown; use one of gptq, awq, fp8, int8, bnb8, nf4"),
        ({"method": "gptq"}, "--method gptq needs instruction rows for calibration; .* --data_path"),
        ({"method": "nf4", "group_size": 64}, "--group_size is for gptq and awq"),
        ({"method": "nf4", "dtype": "int8"}, "--dtype int8 is unknown"),
        ({"method": "nf4", "samples": 0}, "--samples takes a number of 1 or more, not 0"),
    ],
)
def test_quantize_refuses_options_that_contradict_method(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize.main(model_path="none", output_dir=str(tmp_path / "out"), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--eval_samples", "all", "error: --eval_samples takes "), ("--bits", 3, "error: unknown option --bits")],
)
def test_command_refuses_unknown_option_and_text_for_number(
    tmp_path: Path, run_tool: RunTool, option: str, value: object, message: str
) -> None:
    arguments = ("--model_path", "none", "--output_dir", tmp_path / "out", "--method", "nf4", option, value)
    assert run_tool(SCRIPT, *arguments, status=2).stderr.startswith(message)


def test_quantize_refuses_incomplete_and_quantised_models(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        quantization_inputs.check_model("none")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; --model_path"):
        quantization_inputs.check_model(tmp_path)
    done = shutil.copytree(model, tmp_path / "done")
    config = json.loads((done / "config.json").read_text())
    (done / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ValueError, match="done is already quantised"):
        quantization_inputs.check_model(done)
    (done / "config.json").write_text(json.dumps(config))
    (done / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer_config\.json"):
        quantization_inputs.check_model(done)


def test_quantize_names_missing_input_before_missing_library(model: Path, tmp_path: Path, run_tool: RunTool) -> None:
    if importlib.util.find_spec("llmcompressor"):
        pytest.skip("llmcompressor is installed here")
    given = ("--output_dir", tmp_path / "out", "--method", "gptq", "--data_path", "rows.jsonl", "--model_path")
    assert run_tool(SCRIPT, *given, tmp_path / "no", status=2).stderr.startswith(
        f"error: {tmp_path}/no is not a folder"
    )
    assert run_tool(SCRIPT, *given, model, status=2).stderr.startswith("error: rows.jsonl does not exist")


def test_quantize_names_missing_weights(model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"broken: weights are missing .* model\.layers\.1\.mlp\.up_proj\.weight"):
        quantization_methods.load_model(broken)


def test_quantize_refuses_missing_data_and_missing_template(model: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"data_path": "none.jsonl", "eval_path": "", "samples": 4, "eval_samples": 4, "max_length": 64, "seed": 1}
    options["trust_remote_code"] = False
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist; give a \.json"):
        quantization_inputs.read_data(model, True, options)
    rows = written(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"no chat_template\.jinja"):
        quantization_inputs.read_data(tiny_checkpoint, True, options | {"data_path": rows})
    data = quantization_inputs.read_data(
        model, True, options | {"data_path": rows, "eval_path": rows, "max_length": 4096}
    )
    assert (len(data.calibration), len(data.held_out)) == (4, 4)
    assert data.report == ["calibrated on 4 of 5 rows", "measured on 4 of 5 held-out rows"]
    assert not quantization_inputs.read_data(model, False, options).report


def test_settings_of_the_checkpoint_do_not_change_greedy_answers(tiny_checkpoint: Path) -> None:
    """transformers would take settings that are not given from the checkpoint's generation_config.json."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    examples = [quantization_inputs.CalibrationExample([1, 20 + n, 30], [40, 2], "x") for n in range(3)]
    answers = quantized_score.greedy_answers(model, tokenizer, examples)
    own = {"repetition_penalty": 5.0, "num_beams": 3, "no_repeat_ngram_size": 2, "forced_eos_token_id": 9}
    model.generation_config.update(**own)
    assert quantized_score.greedy_answers(model, tokenizer, examples) == answers
    assert {name: getattr(model.generation_config, name) for name in own} == own
