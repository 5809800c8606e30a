"""finetune/ie_run.py: answers in the order of the file, equal for every batch size, with and without adapter."""

import json
import re
from pathlib import Path
from typing import Any

import ie_run
import pytest
import torch
from answer_generation.batched_generation import generate_answers, generate_batch
from chat_prompts.prompt_encoding import PromptEncoder
from conftest import RunScript
from instruction_data.named_templates import load_template
from json_rows.instruction_rows import iterate_instructions, prompt_messages
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

ANSWER_KEYS = ("prediction", "finish_reason")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder with an adapter of random weights and a tokenizer that has the alpaca_short template."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca_short")
    tokenizer.save_pretrained(folder)
    return folder


def test_answers_do_not_depend_on_the_batch(tiny_checkpoint: Path, rows: list[dict[str, str]]) -> None:
    model, tokenizer = ie_run.load_merged(str(tiny_checkpoint), "", "float32")
    encoder = PromptEncoder(tokenizer)
    prompts = encoder.batch_prompt_ids([prompt_messages(row) for row in rows[:9]])
    assert len({len(prompt) for prompt in prompts}) > 3
    alone = generate_answers(model, encoder, prompts, 1, 12)
    assert generate_answers(model, encoder, prompts, 4, 12) == generate_answers(model, encoder, prompts, 9, 12) == alone
    assert all(answer.text for answer in alone)


def test_answer_ends_at_the_last_position_of_the_model(tiny_checkpoint: Path) -> None:
    """A long prompt, which leaves room for 4 tokens, has the same answer beside short prompts and alone."""
    model, tokenizer = ie_run.load_merged(str(tiny_checkpoint), "", "float32")
    encoder = PromptEncoder(tokenizer)
    model.generation_config.eos_token_id = encoder.tokenizer.eos_token_id
    prompts = [list(range(10, 20)), [1, *[30] * 507], list(range(40, 45))]
    alone = [generate_answers(model, encoder, [prompt], 1, 12)[0] for prompt in prompts]
    assert generate_answers(model, encoder, prompts, 3, 12) == alone
    ids = model.generate(torch.tensor([prompts[1]]), max_new_tokens=4, do_sample=False)[0, 508:]
    assert alone[1] == (tokenizer.decode(ids, skip_special_tokens=True), "length")


def test_answer_ends_before_eos(tiny_checkpoint: Path) -> None:
    model, tokenizer = ie_run.load_merged(str(tiny_checkpoint), "", "float32")
    prompts = PromptEncoder(tokenizer).batch_prompt_ids(
        [[{"role": "user", "content": text}] for text in ("Ann", "Bo was born")]
    )
    whole = generate_answers(model, PromptEncoder(tokenizer), prompts, 2, 8)
    ids = model.generate(torch.tensor([prompts[0]]), max_new_tokens=8, do_sample=False)[0, len(prompts[0]) :].tolist()
    at = next(index for index in range(1, 8) if ids[index] not in ids[:index])
    model.generation_config.eos_token_id = [ids[at]]
    cut = generate_answers(model, PromptEncoder(tokenizer), prompts, 2, 8)
    assert cut[0] == (tokenizer.decode(ids[:at], skip_special_tokens=True), "stop")
    assert whole[0] == (tokenizer.decode(ids, skip_special_tokens=True), "length")
    at_the_limit = generate_answers(model, PromptEncoder(tokenizer), prompts, 2, at + 1)
    assert at_the_limit[0] == cut[0]  # the last token that fits is the end token
    assert generate_answers(model, PromptEncoder(tokenizer), prompts, 2, at)[0] == (cut[0].text, "length")


def test_settings_of_the_checkpoint_do_not_change_greedy_answers(tiny_checkpoint: Path) -> None:
    """By default, transformers takes settings that are not given from the checkpoint's generation_config.json."""
    model, tokenizer = ie_run.load_merged(str(tiny_checkpoint), "", "float32")
    encoder = PromptEncoder(tokenizer)
    prompts = encoder.batch_prompt_ids([[{"role": "user", "content": text}] for text in ("Ann", "Bo was born")])
    answers = generate_answers(model, encoder, prompts, 2, 20)
    own = {
        "repetition_penalty": 5.0, "num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 18, "temperature": 0.3,
        "do_sample": True, "use_cache": False, "cache_implementation": "static", "forced_eos_token_id": 9,
        "begin_suppress_tokens": list(range(3, 400)),
    }  # fmt: skip
    model.generation_config.update(**own)
    assert generate_answers(model, encoder, prompts, 2, 20) == answers
    assert {name: getattr(model.generation_config, name) for name in own} == own


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_next", "lfm2", "mamba"])
def test_removing_finished_rows_does_not_change_the_others(kind: str) -> None:
    """Caches of state-space and linear-attention layers cannot be split."""
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    other: dict[str, dict[str, object]] = {
        "gemma2": {"sliding_window": 6}, "mamba": {"state_size": 4},
        "qwen3_next": {
            "num_experts": 2, "num_experts_per_tok": 1, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
            "layer_types": ["linear_attention", "full_attention"],
        },
        "lfm2": {"layer_types": ["conv", "full_attention"]},
    }  # fmt: skip
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **sizes, num_key_value_heads=1, intermediate_size=48, **other.get(kind, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    lengths = [9, 8, 8, 5, 3, 1]
    ids = torch.stack([torch.nn.functional.pad(torch.randint(2, 60, (n,)), (9 - n, 0), value=1) for n in lengths])
    mask = torch.stack([torch.nn.functional.pad(torch.ones(n, dtype=torch.int64), (9 - n, 0)) for n in lengths])
    free = GenerationConfig(do_sample=False, max_new_tokens=40, eos_token_id=[60], pad_token_id=1)
    answers = model.generate(input_ids=ids, attention_mask=mask, generation_config=free)[:, 9:].tolist()
    ends = [answers[2][4], answers[0][20]]
    settings = GenerationConfig(do_sample=False, max_new_tokens=40, eos_token_id=ends, pad_token_id=1)
    for row, answer in zip(generate_batch(model, ids, mask, settings), answers, strict=True):
        length = next((at for at, token in enumerate(answer) if token in ends), 39) + 1
        assert row[:length] == answer[:length]


@pytest.mark.integration
def test_adapter_changes_the_answers_and_sets_the_template(
    tmp_path: Path, tiny_checkpoint: Path, adapter: Path, rows_file: Path, run_script: RunScript
) -> None:
    target = tmp_path / "predictions.jsonl"
    done = run_script(
        "finetune/ie_run.py", "--base_model", tiny_checkpoint, "--lora_weights", adapter, "--data_path", rows_file,
        "--output", target, "--max_new_tokens", 6, "--limit", 10,
    )  # fmt: skip
    *_, last = done.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(target))}: 10 answers in \d+(\.\d)? s \(\d+\.\d\d s a row\)", last)
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k not in ANSWER_KEYS} for row in written] == list(
        iterate_instructions(rows_file)
    )[:10]
    model, tokenizer = ie_run.load_merged(str(tiny_checkpoint), str(adapter), "float32")
    prompts = PromptEncoder(tokenizer).batch_prompt_ids([prompt_messages(row) for row in written])
    assert tokenizer.decode(prompts[0][1:]).startswith("### Instruction:")
    answers = [(row["prediction"], row["finish_reason"]) for row in written]
    assert generate_answers(model, PromptEncoder(tokenizer), prompts, 32, 6) == answers
    base, _ = ie_run.load_merged(str(tiny_checkpoint), "", "float32")
    assert generate_answers(base, PromptEncoder(tokenizer), prompts, 32, 6) != answers


def test_adapter_without_one_tensor_is_refused(tmp_path: Path, tiny_checkpoint: Path, adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    first = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != first}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has only one of lora_A and lora_B for"):
        ie_run.load_merged(str(tiny_checkpoint), str(tmp_path), "float32")


MESSAGES = [{"role": "user", "content": "Extract.", "input": "Ann came."}, {"role": "assistant", "content": "{}"}]


def test_rows_that_cannot_be_answered_stop_the_run_or_are_skipped(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not usable: a number as input, a role that the template lacks, a prompt that is longer than the context."""
    data, target = tmp_path / "d.jsonl", tmp_path / "p.jsonl"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"messages": [{**MESSAGES[0], "input": 5}]}, "d.jsonl:2 has a message whose input is not text"),
        (
            {"instruction": "q", "system": "s"},
            "d.jsonl:2 cannot be used: the chat template cannot render these messages: the alpaca",
        ),
        ({"instruction": "山 " * 600}, "leaves no room for an answer in the model's 512 positions; shorten it"),
    ]
    given: dict[str, Any] = {"base_model": str(tiny_checkpoint), "data_path": str(data), "output": str(target)}
    given |= {"prompt_template_name": "alpaca", "max_new_tokens": 4}
    for row, message in bad:
        data.write_text("".join(json.dumps(each) + "\n" for each in ({"messages": MESSAGES}, row)))
        with pytest.raises(ValueError, match=r"d\.jsonl:2 ") as caught:
            ie_run.main(**given)
        assert message in str(caught.value)
        assert not target.exists()
    rows = [{"messages": MESSAGES}, *(row for row, _ in bad), {"instruction": "q"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ie_run.main(**given, on_error="skip")
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [{key: row[key] for key in row if key not in ANSWER_KEYS} for row in written] == [rows[0], rows[4]]
    notices = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in notices if "skipped" in line] == [f"{data}:{number}," for number in (2, 3, 4)]
    model, tokenizer = ie_run.load_merged(str(tiny_checkpoint), "", "float32")
    encoder = PromptEncoder(tokenizer, load_template("alpaca"))
    prompts = encoder.batch_prompt_ids([MESSAGES[:1], [{"role": "user", "content": "q"}]])
    answers = [(row["prediction"], row["finish_reason"]) for row in written]
    assert answers == generate_answers(model, encoder, prompts, 2, 4)
    data.write_text(json.dumps(bad[1][0]))
    with pytest.raises(ValueError, match="has no row that can be answered"):
        ie_run.main(**given, on_error="skip")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_model": "gone"}, "gone does not exist; --base_model takes"),
        ({"lora_weights": "here"}, "has no adapter_config.json"),
        ({"data_path": "gone.jsonl"}, "gone.jsonl does not exist"),
        ({"prompt_template_name": "vicuna"}, "take one of alpaca"),
        ({"output": "no/such/folder/p.jsonl"}, "no/such/folder does not exist"),
        ({"batch_size": 0}, "--batch_size 0 is too small; it must be at least 1"),
        ({"max_new_tokens": -1}, "--max_new_tokens -1 is too small"),
    ],
)
def test_error_for_invalid_input_comes_before_the_model_is_loaded(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, changed: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"base_model": tiny_checkpoint, "data_path": rows_file, "output": tmp_path / "p.jsonl"}
    changed = {name: tmp_path if value == "here" else value for name, value in changed.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ie_run.main(**{**given, **changed})
    assert not (tmp_path / "p.jsonl").exists()


def test_invalid_input_is_an_error_of_one_line(tmp_path: Path, run_script: RunScript, rows_file: Path) -> None:
    arguments = ("--base_model", tmp_path / "gone", "--data_path", rows_file, "--output", tmp_path / "p.jsonl")
    done = run_script("finetune/ie_run.py", *arguments, status=2)
    assert done.stderr.startswith(f"error: {tmp_path / 'gone'} does not exist")
    assert len(done.stderr.splitlines()) == 1
    unknown = run_script("finetune/ie_run.py", *arguments, "--max_tokens", 5, status=2).stderr
    assert unknown.startswith("error: unknown option --max_tokens")
    assert len(unknown.splitlines()) == 1
