"""chat_prompts/: rendered templates, prompt and answer boundaries, and texts that spell special tokens."""

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chat_models import PUBLISHED, QUESTIONS, byte_level, with_markers
from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages
from conftest import RunScript, small_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_data.named_templates import load_template
from instruction_data.tokenized_examples import EncodingSettings, encode_turns
from json_rows.instruction_rows import iterate_instructions, messages_of
from transformers import AddedToken, AutoTokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
Tokenizer = Any


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.chat_template = load_template("alpaca")
    return tokenizer


@pytest.fixture(scope="session")
def byte_level_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    byte_level(folder, small_texts())
    return with_markers(folder)


def user(instruction: str, context: str = "") -> dict[str, str]:
    return {"role": "user", "content": instruction, "input": context}


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def trained_ids(encoder: PromptEncoder, talk: list[dict[str, str]]) -> list[int]:
    [turns] = encoder.turns([talk])
    return [index for turn in turns for part in turn for index in part]


@pytest.mark.parametrize("name", ["alpaca", "alpaca_short"])
def test_templates_render_byte_for_byte_like_the_published_format(
    shared_data: Path, tokenizer: Tokenizer, name: str
) -> None:
    published = json.loads((shared_data / f"templates/{name}.json").read_text())
    tokenizer.chat_template = load_template(name)
    for instruction, context in (
        ("List three.", ""),
        ("Extract {entities}.", "Ann %s was born {{here}} in {% raw %} Oslo."),
        ("  spaces \n\n", "\n x \n"),
        ("抽取关系。", "李白生于碎叶。"),
    ):
        kind = "prompt_input" if context else "prompt_no_input"
        expected = published[kind].replace("{instruction}", instruction).replace("{input}", context)
        assert PromptEncoder(tokenizer).rendered_prompt([user(instruction, context)]) == "<s>" + expected
        talk = [user(instruction, context), answer("Yes.")]
        assert tokenizer.apply_chat_template(talk, tokenize=False) == "<s>" + expected + "Yes.</s>"


def test_llama_2_template_renders_like_metas_format(tokenizer: Tokenizer) -> None:
    """An answer includes the white space around it; each turn begins with BOS; the first has the system message."""
    tokenizer.chat_template = load_template("llama-2")
    talk = [
        {"role": "system", "content": "Be brief."}, user("Who?", "Ann."), answer("Ann"), user("And?"), answer("Bo"),
    ]  # fmt: skip
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    assert text == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho?\nAnn. [/INST] Ann </s><s>[INST] And? [/INST] Bo </s>"
    )
    assert trained_ids(PromptEncoder(tokenizer), talk) == tokenizer(text, add_special_tokens=False).input_ids


def test_chatml_ends_every_answer_in_its_own_token_and_never_in_eos(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = load_template("chatml")
    encoder = PromptEncoder(tokenizer)
    talk = [user("Say <|im_end|>.", "a"), answer("Yes "), user("b"), answer("No<|im_end|>")]
    ids = trained_ids(encoder, talk)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end), ids.count(tokenizer.eos_token_id)) == (4, 4, 0)
    assert ids[-1] == end
    assert encoder.stop_ids == sorted([end, tokenizer.eos_token_id])
    assert encoder.prompt_ids([*talk, user("c")])[: len(ids)] == ids


@pytest.mark.parametrize(("instruction", "context"), QUESTIONS)
@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_prompt_ids_are_the_tokenizers_own(
    tokenizer: Tokenizer, byte_level_tokenizer: Tokenizer, kind: str, instruction: str, context: str
) -> None:
    tokenizer = tokenizer if kind == "sentencepiece" else byte_level_tokenizer
    tokenizer.chat_template = load_template("alpaca")
    own = tokenizer.apply_chat_template([user(instruction, context)], add_generation_prompt=True, return_dict=False)
    assert PromptEncoder(tokenizer).prompt_ids(instruction_messages(instruction, context)) == own
    assert own.count(tokenizer.bos_token_id) == 1


def test_prompt_ids_are_the_tokenizers_own_for_any_ordinary_text(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS, TEXTS)
    def check_ids(instruction: str, context: str) -> None:
        if any(token in instruction + context for token in encoder.special_tokens):
            return
        talk = [user(instruction, context)]
        assert encoder.prompt_ids(talk) == tokenizer.apply_chat_template(talk, add_generation_prompt=True).input_ids

    check_ids()


def test_white_space_that_a_control_token_removes_is_removed(tokenizer: Tokenizer) -> None:
    """Phi-3's special tokens remove the line break after them."""
    marker = AddedToken("<|end|>", rstrip=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [marker]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|end|>\n' }}{% endfor %}{{ 'assistant:' }}"
    )
    own = tokenizer.apply_chat_template([user("a"), answer("b"), user("c")], return_dict=False)
    assert PromptEncoder(tokenizer).prompt_ids([user("a"), answer("b"), user("c")]) == own


@pytest.mark.integration
def test_answers_equal_the_joint_encoding_on_real_rows(
    shared_data: Path, tmp_path: Path, run_script: RunScript
) -> None:
    """With LLaMA-2's tokenizer and the alpaca template, no merge crosses the boundary of prompt and answer."""
    model = shared_data / "llama/tokenizer.model"
    run_script("tools/build_tokenizer.py", "--tokenizer_model", model, "--output_dir", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = load_template("alpaca")
    found = [
        row
        for task in ("NER", "RE", "EE")
        for row in iterate_instructions(shared_data / f"iepile/{task}/train_sorted.zh.json")
    ]
    encoder = PromptEncoder(tokenizer)
    for row in random.Random(0).sample(found, min(300, len(found))):
        text = tokenizer.apply_chat_template(messages_of(row), tokenize=False)
        assert trained_ids(encoder, messages_of(row)) == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_control_token_spellings_in_user_text_stay_text(
    tokenizer: Tokenizer, byte_level_tokenizer: Tokenizer, kind: str
) -> None:
    tokenizer = tokenizer if kind == "sentencepiece" else byte_level_tokenizer
    tokenizer.chat_template = load_template("alpaca")
    encoder = PromptEncoder(tokenizer)
    special_ids = set(encoder.special_tokens.values())
    parts = st.lists(
        st.sampled_from(["<s>", "</s>", "<unk>", "<", "s>", "/", "字", " ", "a", "\n", "\ufdd0", "\ufdd1"])
    )

    @settings(max_examples=150, deadline=None)
    @given(*[parts.map("".join)] * 3)
    def check_ids(instruction: str, context: str, reply: str) -> None:
        prompt = encoder.prompt_ids([user(instruction, context)])
        assert [index for index in prompt if index in special_ids] == [tokenizer.bos_token_id]
        rendered = tokenizer.apply_chat_template(
            [user(instruction, context)], tokenize=False, add_generation_prompt=True
        )
        assert prompt == [tokenizer.bos_token_id, *text_ids(tokenizer, rendered.removeprefix("<s>"))]
        [[turn]] = encoder.turns([[user(instruction, context), answer(reply)]])
        assert turn.prompt == prompt
        assert not special_ids & set(turn.answer)
        assert tokenizer.decode(prompt[1:] + turn.answer).endswith(reply)
        assert turn.end == [tokenizer.eos_token_id]

    check_ids()


def test_overlapping_and_single_character_spellings_stay_text(byte_level_tokenizer: Tokenizer, tmp_path: Path) -> None:
    byte_level_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["zyz", "☃"]})
    tokenizer.chat_template = "{{ messages[0].content }}☃"
    ids = PromptEncoder(tokenizer).prompt_ids([user("xzyzyzy☃ ☃zyz")])
    special = [index for index in ids if index in tokenizer.all_special_ids]
    assert special == [tokenizer.convert_tokens_to_ids("☃")]
    assert tokenizer.decode(ids) == "xzyzyzy☃ ☃zyz☃"


def test_text_with_every_noncharacter_is_encoded_like_any_other(tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, [*range(0xFDD0, 0xFDF0), 0xFFFE, 0x10FFFF])) + "</s>"
    encoder = PromptEncoder(tokenizer)
    ids = encoder.prompt_ids(instruction_messages(text, text))
    assert tokenizer.decode(ids).count(text) == 2
    assert tokenizer.eos_token_id not in ids
    first = encoder.prompt_ids([user(text)])
    assert encoder.prompt_ids([user(text), answer(text), user(text)])[: len(first)] == first


def test_half_a_surrogate_pair_is_refused_with_one_line(tokenizer: Tokenizer) -> None:
    for work in (
        lambda text: PromptEncoder(tokenizer).prompt_ids(instruction_messages(text)),
        PromptEncoder(tokenizer).plain_text_ids,
    ):
        with pytest.raises(ValueError, match="character 1 of a text is half of a surrogate pair"):
            work("a\ud800b")


def test_answers_end_in_eos_if_the_markers_of_a_template_are_ordinary_text(tokenizer: Tokenizer) -> None:
    """The markers of Zephyr's template are not special tokens."""
    tokenizer.chat_template = PUBLISHED["zephyr"]
    [turns] = PromptEncoder(tokenizer).turns([[user("a"), answer("b")]])
    assert turns[-1].end == [tokenizer.eos_token_id]


@pytest.mark.parametrize("name", [*sorted(PUBLISHED), "alpaca", "alpaca_short", "chatml", "llama-2"])
def test_input_is_always_rendered_once(byte_level_tokenizer: Tokenizer, name: str) -> None:
    template = PUBLISHED.get(name) or load_template(name)
    encoder = PromptEncoder(byte_level_tokenizer, template)
    assert encoder.chat_template.uses_input == (name not in PUBLISHED)
    before = [{"role": "system", "content": "s"}] if name == "needs-system" else []
    text = encoder.rendered_prompt([*before, user("Which?", "the input")])
    assert ("Which?\n\nthe input" in text) == (name in PUBLISHED)
    assert text.count("the input") == 1
    if name in PUBLISHED:
        with_input = encoder.prompt_ids([*before, user("Which?", "the input")])
        assert with_input == encoder.prompt_ids([*before, user("Which?\n\nthe input")])


def test_template_that_only_mentions_input_does_not_use_it(tokenizer: Tokenizer) -> None:
    template = "{# message.input #}{{ messages[-1].content }}{% if messages[0]['input'] is undefined %}?{% endif %}"
    assert PromptEncoder(tokenizer, template).rendered_prompt([user("a", "b")]) == "a\n\nb"
    looped = "{% for m in messages %}{% for key in ['content', 'in' + 'put'] %}{{ m[key] }}|{% endfor %}{% endfor %}"
    assert PromptEncoder(tokenizer, looped).rendered_prompt([user("a", "b")]) == "a|b|"


def test_an_input_of_another_role_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="a message of the role assistant has an input"):
        PromptEncoder(tokenizer).prompt_ids([user("a"), answer("b") | {"input": "c"}, user("d")])


def test_prompt_without_a_template_is_the_text_after_bos(tokenizer: Tokenizer) -> None:
    """Contents and inputs are joined by blank lines, for one message and for several."""
    tokenizer.chat_template = None
    encoder, bos = PromptEncoder(tokenizer), [tokenizer.bos_token_id]
    assert encoder.prompt_ids(instruction_messages("one </s>", "two")) == bos + text_ids(tokenizer, "one </s>\n\ntwo")
    assert (
        encoder.prompt_ids(instruction_messages("one"))
        == encoder.plain_text_ids("one")
        == bos + text_ids(tokenizer, "one")
    )
    assert encoder.prompt_ids(instruction_messages("", "two")) == encoder.plain_text_ids("two")
    assert encoder.prompt_ids(instruction_messages("")) == bos
    assert encoder.prompt_ids([user("a", "b"), answer("c"), user("d")]) == encoder.plain_text_ids("a\n\nb\n\nc\n\nd")
    assert encoder.stop_ids == [tokenizer.eos_token_id]
    with pytest.raises(ValueError, match="no chat template"):
        encoder.turns([[user("a"), answer("b")]])


def test_prompt_is_refused_only_if_the_template_rejects_the_messages(tokenizer: Tokenizer) -> None:
    talk = [user("a"), answer("b"), user("c")]
    rewriting = PromptEncoder(
        tokenizer, "{{ bos_token }}{% for m in messages %}{{ m.content ~ loop.revindex }}{% endfor %}"
    )
    assert tokenizer.decode(rewriting.prompt_ids(talk)) == "<s> a3b2c1"
    with pytest.raises(ValueError, match="renders a question differently once it has an answer"):
        rewriting.turns([talk])
    with pytest.raises(ValueError, match=r"cannot render these messages: .*not system"):
        PromptEncoder(tokenizer).prompt_ids([{"role": "system", "content": "s"}, user("a")])
    with pytest.raises(ValueError, match="cannot render these messages: no"):
        PromptEncoder(tokenizer, "{{ raise_exception('no') }}").prompt_ids(instruction_messages("why"))


def test_answers_are_trained_as_qwen3_renders_them_before_the_next_question(tokenizer: Tokenizer) -> None:
    """No empty reasoning is added before answers; a row's own reasoning is kept."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    encoder = PromptEncoder(tokenizer, PUBLISHED["qwen3"])
    talk = [user("a"), answer("b"), user("c"), answer("<think>\nwhy\n</think>\n\nd")]
    text = tokenizer.decode(trained_ids(encoder, talk))
    assert text.count("<think>") == 1
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        encoder.turns([[*talk, user("e"), answer("f")]])  # the template removes the reasoning from the prompt for e
    [turn] = encoder.last_turns([[*talk, user("e"), answer("f")]])
    assert turn.prompt == encoder.prompt_ids([*talk, user("e")])


def test_a_template_that_moves_the_system_message_trains_on_rows_of_one_turn(tokenizer: Tokenizer) -> None:
    encoder, system = PromptEncoder(tokenizer, PUBLISHED["mistral-v3"]), {"role": "system", "content": "s"}
    [[turn]] = encoder.turns([[system, user("a"), answer("b ")]])
    assert turn.prompt == encoder.prompt_ids([system, user("a")])
    assert turn.end == [tokenizer.eos_token_id]
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        encoder.turns([[system, user("a"), answer("b"), user("c"), answer("d")]])
    assert len(encoder.turns([[user("a"), answer("b"), user("c"), answer("d")]])[0]) == 2


def test_only_the_last_answer_ends_in_eos_where_the_template_has_no_end_of_turn(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer, PUBLISHED["no-end"])
    [turns] = encoder.turns([[user("a"), answer("b"), user("c"), answer("d")]])
    assert [turn.end for turn in turns] == [[], [tokenizer.eos_token_id]]
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="could not stop; set eos_token"):
        PromptEncoder(tokenizer, PUBLISHED["no-end"]).turns([[user("a"), answer("b")]])


@pytest.mark.parametrize("is_control", [False, True])
def test_only_the_last_answer_ends_in_eos_where_the_next_question_ends_the_others(
    tokenizer: Tokenizer, is_control: bool
) -> None:
    """Like GLM-4's, the template writes no token after an answer, but <|user|> before a question."""
    template = (
        "{{ bos_token }}{% for item in messages %}{{ '<|' + item.role + '|>\n' + item.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    if is_control:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    encoder, talk = PromptEncoder(tokenizer, template), [user("a"), answer("b"), user("c"), answer("d")]
    [turns] = encoder.turns([talk])
    eos = tokenizer.eos_token_id
    assert [turn.end for turn in turns] == [[], [eos]]
    assert encoder.stop_ids == [eos]
    ids, first = trained_ids(encoder, talk), encoder.prompt_ids(talk[:1])
    assert ids[: len(first)] == first
    assert ids[:-1] == encoder.prompt_ids([*talk, user("e")])[: len(ids) - 1]
    row = encode_turns(turns, EncodingSettings(100))
    spans = zip(row.spans[::2], row.spans[1::2], strict=True)
    assert [tokenizer.decode(row.ids[start:end]).strip() for start, end in spans] == ["b", "d</s>"]


def test_token_that_the_tokenizer_lacks_is_named_with_a_remedy(tokenizer: Tokenizer) -> None:
    tokenizer.bos_token = None
    message = r"these messages: the template writes bos_token, which the tokenizer does not have; use another temp"
    with pytest.raises(ValueError, match=message):
        PromptEncoder(tokenizer, load_template("llama-2")).prompt_ids(instruction_messages("a"))


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best


@pytest.mark.parametrize("text", ["<", "</s", "</s>", "\ufdd0", "山a "])
def test_time_is_linear_in_the_length_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    encoder = PromptEncoder(tokenizer)
    few, many = instruction_messages(text * 5_000), instruction_messages(text * 40_000)
    assert seconds(lambda: encoder.prompt_ids(many)) < 30 * seconds(lambda: encoder.prompt_ids(few)) + 0.05


def test_time_is_linear_in_the_number_of_turns(tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(tokenizer)
    few, many = ([user("a"), answer("b")] * count + [user("c")] for count in (200, 1600))
    assert seconds(lambda: encoder.prompt_ids(many)) < 30 * seconds(lambda: encoder.prompt_ids(few)) + 0.05


def test_threads_encode_independently_of_each_other(tokenizer: Tokenizer) -> None:
    """Meanwhile, other threads use the tokenizer with special tokens enabled, which is a setting of its backend."""
    encoder = PromptEncoder(tokenizer)
    texts = [f"{number} </s> " * 200 for number in range(40)]
    expected = [encoder.prompt_ids(instruction_messages(text)) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(tokenizer, text, split_special_tokens=False) for text in texts]
        assert list(pool.map(lambda text: encoder.prompt_ids(instruction_messages(text)), texts)) == expected
    assert all(tokenizer.eos_token_id in other.result().input_ids for other in others)
