"""--eval_generate: answers to held-out examples are scored in training; the best checkpoint is the result."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from answer_generation import answer_scorer
from answer_generation.answer_scorer import AnswerScorer, scores_by_name
from answer_generation.batched_generation import GeneratedAnswer
from chat_prompts.prompt_encoding import PromptEncoder
from instruction_data.named_templates import load_template
from safetensors.torch import load_file
from transformers import AutoTokenizer
from tuning_runs import command

import finetune

PERSON, PLACE = '{"person": ["Ann"]}', '{"person": [], "place": ["Oslo"]}'


def test_f1_is_over_entities_and_triples_together() -> None:
    triple = '{"born in": [{"subject": "Ann", "object": "Oslo"}]}'
    found = scores_by_name([(PERSON, PERSON), ("{}", PLACE), ("no", triple), (triple, triple)])
    assert found["f1"] == pytest.approx(2 * 2 / (2 + 4))
    assert (found["entity_f1"], found["triple_f1"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (found["parsed"], found["exact"]) == (0.75, 0.5)


def test_held_out_answers_that_are_not_extraction_are_refused(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca")
    for output, reason in (
        ("b", r"is not a JSON object of lists \('b'\)"),
        ('{"layoff": [{"trigger": "cut"}]}', 'has {"trigger": "cut"} under \'layoff\', which is neither a name nor'),
    ):
        with pytest.raises(
            ValueError, match=f"entities and triples, but a held-out answer {reason}.*; remove the option"
        ):
            AnswerScorer(PromptEncoder(tokenizer), [{"instruction": "a", "output": output}], 4, 8)


def test_best_checkpoint_by_f1_is_the_result(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two sources in proportion, each with losses; the answers at step 2 are replaced by correct ones."""
    other = tmp_path / "other.jsonl"
    other.write_text(rows_file.read_text())
    calls: list[int] = []
    generate = answer_scorer.generate_answers

    def answers(model: Any, encoder: Any, prompts: list[list[int]], size: int, tokens: int) -> list[GeneratedAnswer]:
        assert not model.training
        answers = generate(model, encoder, prompts[:3], size, 4)  # real generation, with a cache and padding
        calls.append(len(prompts))
        return [GeneratedAnswer(PERSON, "stop") if len(calls) == 2 else answers[0]] * len(prompts)

    monkeypatch.setattr(answer_scorer, "generate_answers", answers)
    monkeypatch.setattr(answer_scorer, "messages_of", lambda row: [{"role": "assistant", "content": PERSON}])
    more: tuple[object, ...] = ("--eval_generate", "--val_set_size", 9, "--batch_size", 8, "--max_steps", 3)
    more += ("--eval_strategy", "steps", "--eval_steps", 1, "--mix", "first=2,second=1", "--lora_dropout", 0)
    more += ("--bf16", True)  # answers are generated under autocast, as training is
    finetune.main(command(tiny_checkpoint, f"first={rows_file},second={other}", tmp_path / "out", *more))
    log = [json.loads(line) for line in (tmp_path / "out/train_log.jsonl").read_text().splitlines()]
    assert [entry["eval_f1"] for entry in log if "eval_f1" in entry] == [0, 1, 0]
    assert {"eval_loss_first", "eval_loss_second", "eval_f1", "eval_parsed"} <= set(log[1])
    assert {"loss_first", "loss_second"} <= set(log[0])
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["best_checkpoint"] == {"step": 2, "metric": 1.0}
    best, result = (load_file(tmp_path / "out" / name / "adapter_model.safetensors") for name in ("checkpoint-2", "."))
    assert all(torch.equal(best[name], result[name]) for name in best)
    assert "the weights of step 2, the best by f1" in capsys.readouterr().out


def test_signal_while_answers_are_generated_ends_the_evaluation(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    calls: list[int] = []

    def answers(model: Any, encoder: Any, prompts: list[list[int]], size: int, tokens: int) -> list[GeneratedAnswer]:
        calls.append(len(prompts))
        os.kill(os.getpid(), signal.SIGTERM)
        return [GeneratedAnswer(PERSON, "stop")] * len(prompts)

    monkeypatch.setattr(answer_scorer, "generate_answers", answers)
    monkeypatch.setattr(answer_scorer, "messages_of", lambda row: [{"role": "assistant", "content": PERSON}])
    more: tuple[object, ...] = ("--eval_generate", "--val_set_size", 9, "--batch_size", 8, "--max_steps", 5)
    more += ("--eval_strategy", "steps", "--eval_steps", 2, "--per_device_eval_batch_size", 1)
    assert finetune.main(command(tiny_checkpoint, rows_file, tmp_path / "out", *more)) == 143
    assert calls == [4]
    captured = capsys.readouterr()
    assert "notice: a signal ended the evaluation after step 2\n" in captured.err
    assert "stopped by SIGTERM after step 3, with a checkpoint" in captured.err
