"""Score edits: ask a model before and after them, and compare the answers question by question.

    before = answer_edits(model, encoder, [edit])
    ...                                              # change the weights of the model
    after = answer_edits(model, encoder, [edit], before)
    score = score_edit(before[0], after[0], edit)

Every question is scored twice: with teacher forcing, as published, and under free generation (model_answers.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from knowledge_editing.edit_encoding import EditEncoder
from knowledge_editing.edit_files import Edit

from edit_scores.answer_matching import begins_with, count_occurrences, ngram_entropy, normalize
from edit_scores.edit_questions import Question, edit_questions
from edit_scores.model_answers import (
    BATCH,
    ForcedAnswer,
    FreeAnswer,
    forced_answers,
    probe_answers,
    sample_texts,
)


@dataclass(frozen=True)
class QuestionAnswer:
    """A model's answers to a question.

    target_ids: the ids of the expected answer; if it is unknown, those of the free answer before the edit.
    """

    free: FreeAnswer
    forced: ForcedAnswer
    target_ids: tuple[int, ...]


@dataclass(frozen=True)
class EditAnswers:
    """A model's answers to the questions of an edit, in the order of `edit_questions`.

    fluency: entropy in bits of a sampled text (answer_matching.ngram_entropy); None if it was not measured.
    """

    answers: tuple[QuestionAnswer, ...]
    fluency: float | None


@dataclass(frozen=True)
class AnswerScore:
    """The score of one answer; the fields except `text` and `stop` are None if no answer is expected.

    forced: all tokens of the expected answer are the most probable ones, given the true earlier tokens. probability:
    geometric mean of these tokens' probabilities. correct: the free answer begins with (in chat form: contains) the
    expected one and stopped by itself. contains: it has the expected answer anywhere. repeats: more than once.
    """

    text: str
    stop: str
    forced: bool | None = None
    probability: float | None = None
    correct: bool | None = None
    contains: bool | None = None
    repeats: bool | None = None

    @property
    def stopped(self) -> bool:
        return bool(self.stop)


@dataclass(frozen=True)
class QuestionScore:
    """A question with the scores of the answers before and after the edit.

    forced_unchanged: the same tokens are the most probable ones at the positions of the expected answer. unchanged: the
    normalised free answers are equal.
    """

    kind: str
    prompt: str
    expected: str | None
    before: AnswerScore
    after: AnswerScore
    forced_unchanged: bool
    unchanged: bool


@dataclass(frozen=True)
class EditScore:
    """The scores of an edit; fluency: (before, after) in bits, None if it was not measured."""

    location: str
    question: str
    target: str
    ground_truth: str | None
    questions: tuple[QuestionScore, ...]
    fluency: tuple[float, float] | None


def answer_edits(
    model: Any,
    encoder: EditEncoder,
    edits: Sequence[Edit],
    before: Sequence[EditAnswers] | None = None,
    fluency_tokens: int = 0,
    batch: int = BATCH,
) -> list[EditAnswers]:
    """Return a model's answers to the questions of edits.

    before: the answers before the edits, if the model is edited; a question without an expected answer is compared with
    them. fluency_tokens: length of the text that is sampled for each edit to measure fluency; 0: none. Raises
    ValueError, which names the place of the edit, if a question or an answer cannot be encoded.
    """
    asked = [(at, each) for at, edit in enumerate(edits) for each in edit_questions(edit)]
    encoded = [encode_question(encoder, question, edits[at].location) for at, question in asked]
    prompts, expected = [each.prompt for _, each in asked], [each.expected for _, each in asked]
    free = probe_answers(model, encoder, prompts, expected, batch)
    earlier = [answer.target_ids for one in before or () for answer in one.answers]
    targets = []
    for index, (_, question) in enumerate(asked):
        own = encoded[index][1]
        if own is None:
            text = free[index].text
            own = list(earlier[index]) if before else encoder.target_ids(question.prompt, text) if text else []
        targets.append(own)
    forced = forced_answers(model, [prompt for prompt, _ in encoded], targets, batch)
    fluency: list[float | None] = [None] * len(edits)
    if fluency_tokens:
        texts = sample_texts(model, encoder, [edit.question for edit in edits], fluency_tokens, batch=batch)
        fluency = [ngram_entropy(text) for text in texts]
    answers: list[list[QuestionAnswer]] = [[] for _ in edits]
    for (at, _), free_answer, forced_answer, target in zip(asked, free, forced, targets, strict=True):
        answers[at].append(QuestionAnswer(free_answer, forced_answer, tuple(target)))
    return [EditAnswers(tuple(each), entropy) for each, entropy in zip(answers, fluency, strict=True)]


def encode_question(encoder: EditEncoder, question: Question, location: str) -> tuple[list[int], list[int] | None]:
    """Return the ids of a question and of its expected answer (None if unknown); ValueError names the place."""
    try:
        prompt = encoder.prompt_ids(question.prompt)
        return prompt, None if question.expected is None else encoder.target_ids(question.prompt, question.expected)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from None


def score_answer(answer: QuestionAnswer, expected: str | None, is_chat: bool) -> AnswerScore:
    """Return the score of an answer."""
    text, stop = answer.free.text, answer.free.stop
    if expected is None:
        return AnswerScore(text, stop)
    count = count_occurrences(text, expected)
    matches = count > 0 if is_chat else begins_with(text, expected)
    return AnswerScore(
        text, stop, forced=answer.forced.best == answer.target_ids, probability=answer.forced.probability,
        correct=matches and bool(stop), contains=count > 0, repeats=count > 1,
    )  # fmt: skip


def score_edit(before: EditAnswers, after: EditAnswers, edit: Edit, is_chat: bool = False) -> EditScore:
    """Return the score of an edit from the answers before and after it. is_chat: `EditEncoder.is_chat`."""
    questions = []
    for question, old, new in zip(edit_questions(edit), before.answers, after.answers, strict=True):
        questions.append(
            QuestionScore(
                question.kind, question.prompt, question.expected,
                score_answer(old, question.expected, is_chat), score_answer(new, question.expected, is_chat),
                forced_unchanged=old.forced.best == new.forced.best,
                unchanged=normalize(old.free.text) == normalize(new.free.text),
            )
        )  # fmt: skip
    measured = before.fluency is not None and after.fluency is not None
    fluency = (float(before.fluency or 0), float(after.fluency or 0)) if measured else None
    return EditScore(edit.location, edit.question, edit.target, edit.ground_truth, tuple(questions), fluency)
