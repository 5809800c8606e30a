"""edit_encoding.py: prompts, targets, ends of answers and the last token of a subject, by tokenizer and template."""

import random
from pathlib import Path
from typing import Any

import pytest
from chat_models import PUBLISHED, byte_level, with_markers
from conftest import small_texts
from knowledge_editing.edit_encoding import EditEncoder, last_index_of, separator
from transformers import AutoTokenizer

ALPACA = (
    "{{ bos_token }}Below is an instruction.\n\n### Instruction:\n{{ messages[0].content }}\n\n### Response:\n"
    "{% for message in messages[1:] %}{{ message.content + eos_token }}{% endfor %}"
)
TEMPLATES = {"alpaca": ALPACA} | {name: PUBLISHED[name].replace("\n{%", "{%") for name in ("mistral", "qwen", "qwen3")}
TEMPLATES |= {name: PUBLISHED[name] for name in ("llama-3", "gemma", "zephyr")}
PROMPTS = [  # (prompt, subject, target)
    ("The capital of Bado Kilo is", "Bado Kilo", "Nima"),
    ("Bado Kilo was born in", "Bado Kilo", "Old Market Street"),
    ("山水人家出生于", "山水人家", "东北城"),
    ("“龘靐齉”的作者是", "龘靐齉", "🤖龘"),
    ("Where was naïve ½ 🤖 born?", "naïve ½ 🤖", "in ﷺ"),
    ("Kilo, Kilo and Kilo's friend: who is Kilo?", "Kilo", "<s> a {brace} %s"),
    ("Who is the assistant of user Response?", "user Response", "nobody"),
    ("Question\n\n  about Dabe\n", "Dabe", "line\nbreak"),
    ("NATO的总部设在", "NATO", "Oslo"),
    ("Ends with the subject Bado", "Bado", "x"),
]


@pytest.fixture(scope="module", params=["sentencepiece", "bytes"])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_tokenizer
    if request.param == "bytes":
        folder = tmp_path_factory.mktemp("bytes")
        byte_level(folder, small_texts())
    return with_markers(folder)


def encoder(tokenizer: Any, template: str | None) -> EditEncoder:
    return EditEncoder(tokenizer, TEMPLATES.get(template or ""), "chat" if template else "completion")


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("template", [None, *TEMPLATES])
@pytest.mark.parametrize(("prompt", "subject", "target"), PROMPTS)
def test_subject_end_is_the_first_token_that_completes_the_subject(
    tokenizer: Any, template: str | None, prompt: str, subject: str, target: str
) -> None:
    made = encoder(tokenizer, template)
    ids, at = made.prompt_ids(prompt), made.subject_end(prompt, subject)
    occurrences = prompt.count(subject)
    frame = text_of(tokenizer, made.prompt_ids(prompt.replace(subject, "\ue001"))).count(subject)
    assert text_of(tokenizer, ids[: at + 1]).count(subject) >= occurrences
    assert text_of(tokenizer, ids[:at]).count(subject) < occurrences + frame
    assert occurrences - 1 <= text_of(tokenizer, ids[:at]).count(subject)


@pytest.mark.parametrize("template", [None, *TEMPLATES])
@pytest.mark.parametrize(("prompt", "subject", "target"), PROMPTS)
def test_prompt_and_target_decode_to_the_joined_text(
    tokenizer: Any, template: str | None, prompt: str, subject: str, target: str
) -> None:
    made = encoder(tokenizer, template)
    ids, answer = made.prompt_ids(prompt), made.target_ids(prompt, target)
    before = text_of(tokenizer, ids)
    space = "" if template else separator(prompt, target)
    assert text_of(tokenizer, ids + answer).removeprefix(before).lstrip() == (space + target).lstrip()
    ended = made.answer_ids(prompt, target)
    assert ended[: len(answer)] == answer
    assert len(ended) > len(answer)
    if template:
        assert ended[-1] in made.stop_ids
    else:
        assert tokenizer.decode(ended[len(answer) :]) == ("。" if target[-1] in "城龘" else ".")


@pytest.mark.parametrize("draw", range(3))
def test_subject_end_in_random_text_equals_search_over_decoded_prefixes(tokenizer: Any, draw: int) -> None:
    chance, made, characters = random.Random(draw), encoder(tokenizer, None), "".join(small_texts(30))
    for _ in range(40):
        text = "".join(chance.choices(characters, k=25)).strip() + "字"
        start = chance.randrange(len(text) - 4)
        subject = text[start : start + chance.randint(1, 4)].strip()
        if not subject:
            continue
        ids, end = made.prompt_ids(text), text.rfind(subject) + len(subject)
        bytes_before = [len(made.decode(ids[: count + 1]).rstrip("\ufffd")) for count in range(len(ids))]
        assert made.subject_end(text, subject) == next(at for at, length in enumerate(bytes_before) if length >= end)


def test_completion_of_trained_text_has_the_ids_of_the_whole_text(tokenizer: Any) -> None:
    made = encoder(tokenizer, None)
    for prompt, target in (("Bado was born in", "Kilo"), ("山水人家生于", "东北")):
        whole = made.text_ids(prompt + separator(prompt, target) + target)
        assert made.prompt_ids(prompt) + made.target_ids(prompt, target) == whole
        spaced = prompt + " "
        assert made.prompt_ids(spaced) == made.prompt_ids(prompt)
        assert made.decode(made.prompt_ids(spaced) + made.target_ids(spaced, target)) == f"{prompt} {target}"


@pytest.mark.parametrize(
    ("question", "target", "expected"),
    [
        ("The capital is", "Paris", " "), ("首都是", "北京", ""), ("首都是", "Paris", ""),
        ("他毕业于MIT", "的学院", ""),
        ("The capital is", "北京", " "), ("He wrote “", "Faust", ""), ("A:\n", "Paris", ""), ("수도는", "서울", " "),
        ("", "Paris", ""), ("首都：", "Paris", ""),
    ],
)  # fmt: skip
def test_separator_is_a_space_except_in_scripts_without_spaces(question: str, target: str, expected: str) -> None:
    assert separator(question, target) == expected


def test_target_that_merges_with_the_prompt_is_encoded_as_continuation(tokenizer: Any) -> None:
    made = encoder(tokenizer, None)
    for cut in range(1, len("出生工作城市公司")):
        prompt, target = "出生工作城市公司"[:cut], "出生工作城市公司"[cut:]
        ids = made.prompt_ids(prompt) + made.target_ids(prompt, target)
        assert made.decode(ids) == "出生工作城市公司"


def test_errors_name_the_fact_in_one_line(tokenizer: Any) -> None:
    made = encoder(tokenizer, None)
    for action, text in (
        (lambda: made.target_ids("Who?", " "), "becomes no token"),
        (lambda: made.answer_ids("Who?", ""), "becomes no token"),
        (lambda: made.subject_end("Who is it?", "Kilo"), "'Kilo' is not in the prompt"),
        (lambda: made.subject_end("Who is it?", ""), "is not in the prompt"),
        (lambda: encoder(tokenizer, "alpaca").subject_end("Who?", "Response"), "is not in the prompt"),
        (lambda: EditEncoder(tokenizer, None, "chat"), "needs a chat template"),
        (lambda: EditEncoder(tokenizer, None, "qa"), "--prompt_format qa is unknown"),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_format_auto_follows_the_template(tiny_tokenizer: Path) -> None:
    plain: Any = AutoTokenizer.from_pretrained(tiny_tokenizer)
    assert not EditEncoder(plain).is_chat
    assert EditEncoder(plain, ALPACA).is_chat
    assert not EditEncoder(plain, ALPACA, "completion").is_chat
    assert EditEncoder(plain).prompt_ids("a")[0] == plain.bos_token_id


def test_last_index_of_finds_the_last_occurrence_or_none() -> None:
    assert last_index_of([1, 2], [1, 2, 3, 1, 2, 4]) == 3
    assert last_index_of([5], [1, 2]) == last_index_of([], [1]) == -1
