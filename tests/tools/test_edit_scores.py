"""tools/edit_score.py and edit_scores/: answers, scores and intervals against direct computations and known models."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_scores.answer_matching import (
    begins_with,
    complete_sentences,
    count_occurrences,
    first_sentence,
    ngram_entropy,
    normalize,
)
from edit_scores.edit_questions import edit_questions
from edit_scores.model_answers import (
    FreeAnswer,
    forced_answers,
    free_answer,
    generate,
    probe_answers,
    sample_texts,
    token_limit,
)
from edit_scores.score_summary import summarize, summary_table
from edit_scores.scored_edits import EditScore, answer_edits, score_edit
from edit_scores.text_perplexity import perplexity_figure, text_losses
from in_process import RunTool
from knowledge_editing.edit_encoding import EditEncoder
from knowledge_editing.edit_files import Edit, Probe, read_edits
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = "tools/edit_score.py"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}Q: {{ message.content }}\nA:"
    "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def encoder(small_bed: Path) -> EditEncoder:
    return EditEncoder(AutoTokenizer.from_pretrained(small_bed / "model"), prompt_format="completion")


@pytest.fixture(scope="module")
def knowing(small_bed: Path) -> Any:
    """Return the model that knows the facts."""
    return AutoModelForCausalLM.from_pretrained(small_bed / "model", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ignorant(small_bed: Path) -> Any:
    """Return a random model of the same shape, which knows nothing."""
    torch.manual_seed(3)
    return type(knowing_config := AutoModelForCausalLM.from_pretrained(small_bed / "model"))(
        knowing_config.config
    ).eval()


@pytest.fixture(scope="module")
def edits(small_bed: Path) -> list[Edit]:
    return read_edits(small_bed / "edits.jsonl")


def learnt(edit: Edit) -> Edit:
    """Return the edit whose result is the knowledge of the knowing model."""
    return Edit(edit.prompt, edit.subject, str(edit.ground_truth), edit.location, None, (), edit.locality)


@pytest.mark.parametrize(
    ("answer", "target", "begins", "count"),
    [
        ("Paris.", "Paris", True, 1), ("Parisian food", "Paris", False, 0), ("the city of Paris", "Paris", False, 1),
        ("“Paris”, France", "paris", True, 1), ("Paris Paris Paris", "Paris", True, 3), ("NATO的总部", "NATO", True, 1),
        ("北京市。", "北京", True, 1), ("在北京，北京", "北京", False, 2), ("U.S. Army", "U.S.", True, 1),
        ("New\n York", "New York", True, 1), ("", "Paris", False, 0), ("Paris", "", False, 0),
        ("ＰＡＲＩＳ", "Paris", True, 1), ("1608-1609", "1608", True, 1), ("16080", "1608", False, 0),
        ("C++ and C", "C++", True, 1), ("是MIT毕业", "MIT", False, 1), ("a (b* [c", "(b*", False, 1),
        ("the Netherlands", "Netherlands", True, 1), ("Beatles", "The Beatles", True, 1),
        ("another", "other", False, 0),
    ],
)  # fmt: skip
def test_answers_match_whole_words(answer: str, target: str, begins: bool, count: int) -> None:
    assert begins_with(answer, target) == begins
    assert count_occurrences(answer, target) == count


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        (" Paris. And", "", "Paris."), ("Paris", "", None), ("北京。上海", "", "北京。"), ("a\nb", "", "a\n"),
        ("\n\nParis.", "", "Paris."), ("3.5 metres. Then", "", "3.5 metres."),
        ("St. Louis. He", "St. Louis", "St. Louis."),
        ("St. Helena. He", "Oslo", "St."), ("Yahoo! is", "Yahoo!", "Yahoo!"), ("", "", None), ("why?", "", "why?"),
    ],
)  # fmt: skip
def test_first_sentence_ends_at_the_first_end_outside_the_target(text: str, target: str, expected: str | None) -> None:
    assert first_sentence(text, target) == expected


def test_complete_sentences_drop_the_unfinished_one() -> None:
    assert complete_sentences("Sure! It is Paris. The city") == "Sure! It is Paris."
    assert complete_sentences("It is Paris") is None
    assert normalize(" “A  b” ") == "a b"


def test_ngram_entropy_equals_the_published_formula() -> None:
    # 2-grams ab, ba, ab: 0.918 bits; 3-grams aba, bab: 1 bit.
    pairs = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b") == pytest.approx((2 / 3 * pairs + 4 / 3 * 1) / 2)
    assert ngram_entropy("x x x x x x") == ngram_entropy("") == ngram_entropy("one two") == 0
    assert ngram_entropy("天地日月") == ngram_entropy("a b c d")
    assert ngram_entropy("a b c d e f g h") > ngram_entropy("a b a b a b a b")


def test_forced_answers_equal_single_forward_passes(knowing: Any, encoder: EditEncoder, edits: list[Edit]) -> None:
    asked = [(each.prompt, str(each.expected)) for edit in edits[:4] for each in edit_questions(edit)]
    prompts = [encoder.prompt_ids(prompt) for prompt, _ in asked]
    targets = [encoder.target_ids(*each) for each in asked]
    for batch in (1, 5):
        found = forced_answers(knowing, prompts, targets, batch)
        for prompt, target, answer in zip(prompts, targets, found, strict=True):
            with torch.no_grad():
                logits = knowing(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            assert answer.best == tuple(logits.argmax(-1).tolist())
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(target)).item()
            assert answer.probability == pytest.approx(math.exp(-loss), rel=1e-3)
    assert forced_answers(knowing, [prompts[0]], [[]])[0].best == ()


def test_free_answers_do_not_depend_on_the_batch(knowing: Any, encoder: EditEncoder, edits: list[Edit]) -> None:
    asked = [each for edit in edits[:4] for each in edit_questions(edit)]
    prompts, targets = [each.prompt for each in asked], [each.expected for each in asked]
    together = probe_answers(knowing, encoder, prompts, targets)
    assert together == probe_answers(knowing, encoder, prompts, targets, batch=3)
    for prompt, target, answer in list(zip(prompts, targets, together, strict=True))[:6]:
        ids, limit = encoder.prompt_ids(prompt), token_limit(len(encoder.target_ids(prompt, str(target))))
        for _ in range(limit):
            with torch.no_grad():
                ids = [*ids, int(knowing(torch.tensor([ids])).logits[0, -1].argmax())]
        written = encoder.decode(ids[len(encoder.prompt_ids(prompt)) :]).strip()
        assert written.startswith(answer.text)
        assert answer.stop == "sentence"
    kept = knowing.generation_config
    assert generate(knowing, [encoder.prompt_ids("")], [3], set()) != []
    assert knowing.generation_config is kept


def test_stop_of_a_free_answer_is_recorded(encoder: EditEncoder, small_bed: Path) -> None:
    chat = EditEncoder(AutoTokenizer.from_pretrained(small_bed / "model"), TEMPLATE)
    for made, text, has_end, expected in (
        (encoder, "Oslo. Ada", False, FreeAnswer("Oslo.", "sentence")),
        (encoder, "Oslo Oslo", False, FreeAnswer("Oslo Oslo", "")),
        (encoder, "Oslo", True, FreeAnswer("Oslo", "end")),
        (chat, "Yes! It is Oslo. Ada", False, FreeAnswer("Yes! It is Oslo.", "sentence")),
        (chat, "Yes! It is Oslo", True, FreeAnswer("Yes! It is Oslo", "end")),
        (chat, "Oslo Oslo", False, FreeAnswer("Oslo Oslo", "")),
    ):
        ids = made.text_ids(text)[1:] + [made.tokenizer.eos_token_id] * has_end
        assert free_answer(made, ids, has_end, "") == expected


def test_sampled_texts_depend_on_seed_and_prompt_only(knowing: Any, encoder: EditEncoder, edits: list[Edit]) -> None:
    prompts = [edit.question for edit in edits[:5]]
    texts = sample_texts(knowing, encoder, prompts, 20)
    assert texts == sample_texts(knowing, encoder, prompts, 20, batch=2)
    assert texts[2:3] == sample_texts(knowing, encoder, prompts[2:3], 20)
    assert texts != sample_texts(knowing, encoder, prompts, 20, seed=1)
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))


def test_model_that_learnt_the_targets_has_full_efficacy(
    knowing: Any, ignorant: Any, encoder: EditEncoder, edits: list[Edit]
) -> None:
    learning = [learnt(edit) for edit in edits]
    before = answer_edits(ignorant, encoder, learning)
    after = answer_edits(knowing, encoder, learning, before)
    scores = [score_edit(*each) for each in zip(before, after, learning, strict=True)]
    summary = summarize(scores)
    efficacy = summary["efficacy"]
    assert efficacy["forced"]["before"]["value"] == efficacy["correct"]["before"]["value"] == 0
    assert efficacy["forced"]["after"]["value"] > 0.9
    assert efficacy["correct"]["after"]["value"] > 0.9
    assert efficacy["stopped"]["after"]["value"] > 0.9
    assert summary["neighbour"]["correct"]["after"]["value"] > 0.9
    assert summary["locality"]["unchanged"]["value"] < 0.2
    one = answer_edits(knowing, encoder, learning[7:8], before[7:8])
    assert score_edit(before[7], one[0], learning[7]).questions[0].after.text == scores[7].questions[0].after.text


def test_model_without_change_has_full_locality_and_no_efficacy(
    knowing: Any, encoder: EditEncoder, edits: list[Edit]
) -> None:
    answers = answer_edits(knowing, encoder, edits, fluency_tokens=12)
    scores = [score_edit(*each) for each in zip(answers, answers, edits, strict=True)]
    summary = summarize(scores)
    assert summary["efficacy"]["correct"]["after"]["value"] < 0.1
    for kind in ("neighbour", "same_subject", "other", "locality"):
        assert summary[kind]["unchanged"]["value"] == summary[kind]["forced_unchanged"]["value"] == 1
    assert summary["fluency"]["before"] == summary["fluency"]["after"]
    table = summary_table(summary)
    assert max(map(len, table.splitlines())) <= 120
    assert "same_subject" in table


def test_question_without_answer_is_compared_with_the_answer_before(
    knowing: Any, ignorant: Any, encoder: EditEncoder, edits: list[Edit]
) -> None:
    known = edits[0].locality[0]
    edit = Edit("x", "", "y", "e.jsonl:1", None, (), (Probe("neighbour", known.prompt, None),))
    before = answer_edits(knowing, encoder, [edit])
    same = answer_edits(knowing, encoder, [edit], before)
    changed = answer_edits(ignorant, encoder, [edit], before)
    kept, lost = (score_edit(before[0], each[0], edit).questions[1] for each in (same, changed))
    assert kept.unchanged
    assert kept.forced_unchanged
    assert not lost.unchanged
    assert not lost.forced_unchanged
    assert kept.before.text.startswith(str(known.answer))
    assert kept.after.correct is None
    figures = summarize([score_edit(before[0], changed[0], edit)])["neighbour"]
    assert "correct" not in figures
    assert figures["unchanged"]["value"] == 0


def test_empty_target_names_the_place_of_the_edit(knowing: Any, encoder: EditEncoder) -> None:
    with pytest.raises(ValueError, match=r"^e\.jsonl:4: the target '' .*becomes no token") as caught:
        answer_edits(knowing, encoder, [Edit("Who?", "", "", "e.jsonl:4")])
    assert "\n" not in str(caught.value)


def test_perplexity_counts_every_token_once(knowing: Any, encoder: EditEncoder, small_bed: Path) -> None:
    texts = [json.loads(line)["text"] for line in (small_bed / "text.jsonl").read_text(encoding="utf-8").splitlines()]
    long = " ".join(texts[:6])
    ids = encoder.text_ids(long)
    with torch.no_grad():
        logits = knowing(torch.tensor([ids])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
    [(total, tokens)] = text_losses(knowing, encoder, [long])
    assert tokens == len(ids) - 1
    assert total == pytest.approx(expected, rel=1e-4)
    [(cut_total, cut_tokens)] = text_losses(knowing, encoder, [long], window=8, stride=3)
    assert cut_tokens == tokens
    losses = []
    for at in range(1, len(ids)):  # the window that counts token `at` ends at 8, 11, 14, …
        end = min(8 if at < 8 else 8 + -(-(at + 1 - 8) // 3) * 3, len(ids))
        part = ids[max(end - 8, 0) : end]
        with torch.no_grad():
            row = knowing(torch.tensor([part])).logits[0, at - (end - len(part)) - 1]
        losses.append(-row.log_softmax(-1)[ids[at]].item())
    assert cut_total == pytest.approx(sum(losses), rel=1e-4)
    figure = perplexity_figure(text_losses(knowing, encoder, texts))
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert figure["tokens"] == sum(len(encoder.text_ids(text)) - 1 for text in texts)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        perplexity_figure([(0.0, 0)])


def test_intervals_contain_the_share_and_shrink_with_more_edits() -> None:
    def share(count: int) -> dict[str, float]:
        answers = {"text": "a", "stop": "end"}
        questions: list[tuple[bool, ...]] = [(at % 4 == 0,) for at in range(count)]
        made = [make_score(answers, correct[0]) for correct in questions]
        found: dict[str, float] = summarize(made)["efficacy"]["correct"]["after"]
        return found

    few, many = share(40), share(640)
    assert few["value"] == many["value"] == 0.25
    assert few["low"] < many["low"] < 0.25 < many["high"] < few["high"]
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 * math.sqrt(0.25 * 0.75 / 640), rel=0.15)


def make_score(answers: dict[str, str], correct: bool) -> EditScore:
    """Return the score of an edit with one question."""
    from edit_scores.scored_edits import AnswerScore, QuestionScore

    answer = AnswerScore(**answers, forced=correct, probability=0.5, correct=correct, contains=correct, repeats=False)
    question = QuestionScore("efficacy", "q", "t", answer, answer, True, True)
    return EditScore("e:1", "q", "t", None, (question,), None)


def test_command_writes_all_answers_and_a_picture(small_bed: Path, tmp_path: Path, run_tool: RunTool) -> None:
    model, output, picture = small_bed / "model", tmp_path / "scores.json", tmp_path / "scores.png"
    done = run_tool(
        SCRIPT, "--base", model, "--edited", model, "--edits", small_bed / "edits.jsonl", "--samples", 3,
        "--text", small_bed / "text.jsonl", "--fluency_tokens", 8, "--output", output, "--picture", picture,
    )  # fmt: skip
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["prompt_format"] == "completion"
    assert len(record["edits"]) == record["summary"]["edits"] == 3
    assert record["summary"]["locality"]["unchanged"]["value"] == 1
    assert record["summary"]["perplexity"]["before"] == record["summary"]["perplexity"]["after"]
    assert record["edits"][0]["questions"][0]["after"]["text"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "efficacy" in done.stdout
    assert "teacher-forced" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.png"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"--prompt_format": "chat"}, "needs a chat template"), ({"--prompt_format": "qa"}, "use one of auto"),
        ({"--edits": "absent.jsonl"}, "absent.jsonl does not exist"), ({"--base": "absent"}, "--base"),
        ({"--batch_size": 0}, "--batch_size 0 is too small"), ({"--output": "absent/s.json"}, "does not exist"),
    ],
)  # fmt: skip
def test_command_refuses_wrong_options_in_one_line(
    small_bed: Path, tmp_path: Path, run_tool: RunTool, options: dict[str, object], text: str
) -> None:
    given: dict[str, object] = {
        "--base": small_bed / "model", "--edited": small_bed / "model", "--edits": small_bed / "edits.jsonl",
        "--output": tmp_path / "scores.json",
    }  # fmt: skip
    done = run_tool(SCRIPT, *(part for pair in (given | options).items() for part in pair), status=2)
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
