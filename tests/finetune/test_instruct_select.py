"""finetune/instruct_select.py: filters, scores and reasons; losses equal those of a plain forward pass."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_prompts.prompt_encoding import PromptEncoder
from chat_server import ChatServer, chat_server, completion
from in_process import run_in_process
from instruction_data.named_templates import load_template
from instruction_selection.answer_judge import parse_score
from instruction_selection.candidate_rows import Candidate
from instruction_selection.loss_scores import AnswerLoss, LossScorer
from instruction_selection.minhash_index import MinHashIndex, shingles
from instruction_selection.score_ranking import kept_count
from instruction_selection.text_filters import mtld
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = "finetune/instruct_select.py"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


def row(instruction: str, output: str = "A long enough answer", **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "input": "", "output": output, **more}


def select(folder: Path, rows: list[dict[str, Any]], *options: object) -> tuple[list[Any], list[Any]]:
    """Return the kept and the rejected rows."""
    (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    run_in_process(SCRIPT, "--data_path", folder / "in.jsonl", "--output", folder / "out.jsonl", *options)
    kept, rejected = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("out.jsonl", "out.rejected.jsonl")
    )
    assert len(kept) + len(rejected) == len(rows)
    for one in rejected:
        verdict = one["selection"][one["rejected_by"]]
        assert list(one["selection"])[-1] == one["rejected_by"] and verdict["reason"]
    assert all("rejected_by" not in one for one in kept)
    return kept, rejected


def test_equal_rows_are_rejected_with_the_row_that_they_repeat(tmp_path: Path) -> None:
    rows = [
        row("Name a river."),
        row("Name a  river.\n"),
        row("Name a river.", "Nile, another answer"),
        row("Name a lake."),
    ]
    kept, rejected = select(tmp_path, rows)
    assert len(kept) == 3 and rejected[0]["selection"]["exact"] == {"score": 1, "reason": "equal to row 1"}
    assert len(select(tmp_path, rows, "--noexact")[0]) == 4


LONG = "The river flows from the mountains through three countries and past many old towns to the sea in the north."
ZH = "这条河从山上流下来，经过三个国家和许多古老的城镇，最后流入北方的大海。"


def test_near_duplicates_are_rejected_and_short_texts_are_compared_whole(tmp_path: Path) -> None:
    rows = [row(LONG, LONG), row(LONG, f"{LONG} Yes."), row(ZH, ZH), row(ZH, ZH + "好"), row("Hi", "a"), row("Hi", "b"),
            row("hi!", "A"), row("?", "!")]  # fmt: skip
    _, rejected = select(tmp_path, rows, "--minhash", 0.7)
    assert [one["output"] for one in rejected] == [f"{LONG} Yes.", ZH + "好", "A"]
    assert rejected[2]["selection"]["minhash"] == {
        "score": 1.0, "reason": "similarity 1.000 with row 5 is not below 0.7"
    }  # fmt: skip


def test_similarity_is_that_of_the_full_sets_of_shingles() -> None:
    index = MinHashIndex()
    first, second = shingles(LONG), shingles(LONG.replace("north", "south"))
    index.add(first, index.signature(first))
    similarity, number = index.most_similar(second, index.signature(second))
    union = set(first.tolist()) | set(second.tolist())
    assert number == 0 and similarity == len(set(first.tolist()) & set(second.tolist())) / len(union) < 1
    assert len(shingles("two words")) == 1 and len(shingles("")) == 0
    other = shingles(ZH)
    assert index.most_similar(other, index.signature(other)) == (0.0, -1)


def test_questions_that_are_too_similar_to_kept_ones_are_rejected(tmp_path: Path) -> None:
    rows = [row("Name a large river in Asia."), row("Name a large river in Africa."), row("说出亚洲的一条大河。"),
            row("说出非洲的一条大河。"), row("Explain the tides.")]  # fmt: skip
    _, rejected = select(tmp_path, rows, "--rouge", 0.7)
    assert [one["instruction"] for one in rejected] == [rows[1]["instruction"], rows[3]["instruction"]]
    assert rejected[0]["selection"]["rouge"]["reason"] == "ROUGE-L 0.833 with row 1 is not below 0.7"


def test_length_and_language_filters(tmp_path: Path) -> None:
    rows = [
        row("Say it.", "one two"),
        row("Say it now.", "one two three"),
        row("说吧。", "一二三"),
        row("Go", "a " * 9),
    ]
    kept, rejected = select(tmp_path, rows, "--min_length", 3, "--max_length", 5, "--language", "en")
    assert [one["output"] for one in kept] == ["one two three"]
    assert [one["rejected_by"] for one in rejected] == ["length", "language", "length"]
    assert rejected[0]["selection"]["length"] == {"score": 2, "reason": "answer tokens 2 is below 3"}


def test_mtld_of_known_texts(tmp_path: Path) -> None:
    """Of the tokens a b a b …, three end a factor (2 types of 3 tokens); of different tokens, none does."""
    assert mtld(list("abcdefgh")) == 8.0
    assert mtld(["a", "b"] * 30) == 3.0
    assert mtld([]) == 0.0
    _, rejected = select(tmp_path, [row("Say much.", LONG), row("Say again.", "ha " * 40)], "--min_mtld", 10)
    assert [one["rejected_by"] for one in rejected] == ["mtld"] and rejected[0]["selection"]["mtld"]["score"] == 2.0


def test_ranking_keeps_the_best_share_and_a_random_sample_of_the_same_size(tmp_path: Path) -> None:
    rows = [row(f"Question {number}", "word " * number) for number in range(1, 11)]
    best, rejected = select(tmp_path, rows, "--rank_by", "length", "--keep", 0.2)
    assert [len(one["output"].split()) for one in best] == [9, 10]
    assert rejected[0]["selection"]["rank"] == {"score": 10, "reason": "rank 10 of 10 by length, of which 2 are kept"}
    shortest, _ = select(tmp_path, rows, "--rank_by", "length", "--keep", 3, "--rank_order", "lowest")
    assert [len(one["output"].split()) for one in shortest] == [1, 2, 3]
    samples = [select(tmp_path, rows, "--rank_by", "random", "--keep", 4, "--seed", seed)[0] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2] and len(samples[0]) == 4
    assert (kept_count(1, 10), kept_count(0.01, 10), kept_count(30, 10)) == (10, 1, 10)


@pytest.mark.parametrize("template", ["alpaca", None])
def test_losses_equal_those_of_single_forward_passes(tiny_checkpoint: Path, template: str | None) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    encoder = PromptEncoder(tokenizer, load_template(template) if template else None)
    rows = [row("Say it.", "one two"), row(LONG, LONG), row(ZH, ZH), row("x " * 40, "b"), row("Go", LONG * 2)]
    candidates = [Candidate(number, one) for number, one in enumerate(rows, 1)]
    batches = [LossScorer(model, encoder, 500, size).score(candidates) for size in (1, 3, 5)]
    for number, one in enumerate(rows):
        messages = [{"role": "user", "content": one["instruction"]}]
        prompt, answer = encoder.prompt_ids(messages), encoder.text_ids(one["output"])
        if template:
            answer = encoder.last_turns([[*messages, {"role": "assistant", "content": one["output"]}]])[0].answer
        else:
            prompt += encoder.text_ids("\n\n")
        expected = []
        for before in (prompt, [tokenizer.bos_token_id]):
            ids = torch.tensor([before + answer])
            labels = torch.tensor([[-100] * len(before) + answer])
            with torch.no_grad():
                expected.append(model(input_ids=ids, labels=labels).loss.item())
        for losses in batches:
            found = losses[number]
            assert isinstance(found, AnswerLoss)
            assert list(found) == pytest.approx(expected, abs=1e-4)
            assert found.ifd == pytest.approx(expected[0] / expected[1], abs=1e-4)
            assert found.perplexity == pytest.approx(math.exp(expected[0]), rel=1e-3)


def test_long_answer_is_cut_and_long_prompt_is_rejected(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [row("Go", LONG * 5), row(LONG * 40), row("Go", "")]
    options = ("--base_model", tiny_checkpoint, "--cutoff_len", 400, "--max_ifd", 0, "--prompt_template_name", "alpaca")
    kept, rejected = select(tmp_path, rows, *options)
    assert len(kept) == 1 and {"perplexity", "ifd"} <= set(kept[0]["selection"])
    reasons = [one["selection"]["perplexity"]["reason"] for one in rejected]
    assert reasons[0].startswith("cannot be scored: the prompt has ") and reasons[1].startswith("cannot be scored")


def test_judge_scores_rows_and_hostile_answers_are_rejections(server: ChatServer, tmp_path: Path) -> None:
    texts = ['{"score": 9, "reason": "good"}', "Score: 8.5 because", '```json\n{"score": 7, "reason": "x"}\n```', "",
             '{"score": 99}', "[" * 5000, '{"score": "NaN"}', '{"score": 2, "reason": "wrong"}']  # fmt: skip

    def respond(body: dict[str, Any], number: int) -> tuple[int, bytes, dict[str, str]]:
        at = int(body["messages"][0]["content"].split("Question ")[1].split()[0])
        return (400, b"<html>", {}) if at == 8 else (200, completion(body, texts[at]), {})

    server.respond = respond
    rows = [row(f"Question {number} of {len(texts)}") for number in range(9)]
    options = ("--url", server.url, "--model", "m", "--min_judge", 5, "--rank_by", "judge", "--keep", 2)
    kept, rejected = select(tmp_path, rows, *options)
    assert [one["selection"]["judge"]["score"] for one in kept] == [9, 8.5]
    reasons = [one["selection"]["judge"]["reason"] for one in rejected]
    assert reasons[-2:] == ["score 2 is below 5: wrong", "the judge gave no score (status 400: <html>)"]
    assert [one["selection"]["judge"]["score"] for one in rejected] == [7, None, None, None, None, 2, None]
    told = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert told["judge"]["failed"] == 1 and told["kept"] == 2 and told["rejected"] == {"judge": 6, "rank": 1}
    asked = len(server.bodies)
    assert select(tmp_path, rows, *options) == (kept, rejected) and len(server.bodies) == asked


def test_score_of_a_judge_is_found_in_its_forms() -> None:
    assert parse_score('Sure: {"score": 6.5, "reason": "fair\\nenough"} bye') == (6.5, "fair enough")
    assert parse_score("评分：7，很好") == (7.0, "评分：7，很好")
    without = ("", "7", '{"score": 0}', '{"score": null}', '{"score": {}}', f'{{"score": {"9" * 400}}}')
    assert [parse_score(text) for text in without] == [None] * 6


def test_earlier_scores_are_kept_and_other_formats_are_converted(tmp_path: Path) -> None:
    kept, _ = select(tmp_path, [row("Name a river.")], "--rouge", 0.7)
    again, _ = select(tmp_path, kept, "--min_length", 1)
    assert set(again[0]["selection"]) == {"exact", "rouge", "length"}
    talk = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    converted, _ = select(tmp_path, [talk])
    assert [message["role"] for message in converted[0]["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rouge", 7], "--rouge 7 is not a similarity"),
        (["--keep", 0.2], "--rank_by needs --keep"),
        (["--rank_order", "lowest"], "--rank_order has no effect without --rank_by"),
        (["--min_length", 5, "--max_length", 3], "--min_length 5 is above --max_length 3"),
        (["--rank_by", "ifd", "--keep", 0.2], "needs the scores of --base_model"),
        (["--model", "m"], "--model is for a judge; add --url"),
        (["--base_model", "missing"], "missing does not exist"),
        (["--concurrency", 4], "--concurrency is for a judge"),
    ],
)
def test_error_for_wrong_option_is_one_line(tmp_path: Path, options: list[object], message: str) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row("Q")) + "\n")
    done = run_in_process(SCRIPT, "--data_path", tmp_path / "in.jsonl", "--output", tmp_path / "o.jsonl", *options,
                          status=2)  # fmt: skip
    assert done.stderr.count("\n") == 1 and message in done.stderr
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("name", ["out.rejected.jsonl", "out.jsonl.run.json", "out.jsonl.journal"])
def test_input_that_is_a_further_output_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    given = json.dumps(row("Name a river.")) + "\n"
    (tmp_path / name).write_text(given, encoding="utf-8")
    options = ("--data_path", tmp_path / name, "--output", tmp_path / "out.jsonl")
    refused = run_in_process(SCRIPT, *options, status=2)
    assert f"{name} is an input file" in refused.stderr
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == given
