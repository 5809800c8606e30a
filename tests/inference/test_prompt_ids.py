"""prompt_ids.py, prompt_templates.py: the ids of a prompt are those of the template and of tuning."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_data.instructions import Encoder
from prompting.prompt_ids import GUARDS, Message, Prompt, one_turn
from prompting.prompt_templates import read_template
from transformers import AutoTokenizer

QUESTIONS = [
    ("Where was Dabe Kilo born?", ""),
    ("写出首都", "李白生于701年。"),
    ("  spaces,\n\nlines and {{ braces }} {% x %} %s", "input {0} 🤖"),
]


@pytest.fixture(scope="module")
def tokenizer(tuned_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tuned_checkpoint)


@pytest.mark.parametrize(("instruction", "input"), QUESTIONS)
def test_ordinary_text_gives_the_ids_of_the_chat_template(tokenizer: Any, instruction: str, input: str) -> None:
    message = {"role": "user", "content": instruction, "input": input}
    templated = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    assert Prompt(tokenizer).ids(one_turn(instruction, input)) == templated
    assert templated.count(tokenizer.bos_token_id) == 1


def test_spelled_control_tokens_stay_text(tokenizer: Any) -> None:
    """Whatever is written, the only control token is the template's BOS, and the rendering is the template's."""
    prompt = Prompt(tokenizer)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from(["<s>", "</s>", "<unk>", "<", "s>", "a", " ", "山", "\n", GUARDS[0]])).map("".join))
    def holds(text: str) -> None:
        ids = prompt.ids(one_turn(text, text))
        assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.bos_token_id]
        rendered = prompt.render(one_turn(text, text))
        assert rendered.startswith("<s>")
        plain = tokenizer.encode(rendered[3:], add_special_tokens=False, split_special_tokens=True)
        assert ids == [tokenizer.bos_token_id, *plain]

    holds()


def test_without_a_template_the_prompt_is_bos_and_the_raw_text(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    raw = tokenizer.encode("one </s>\ntwo", add_special_tokens=False, split_special_tokens=True)
    assert Prompt(tokenizer).ids(one_turn("one </s>", "two")) == [tokenizer.bos_token_id, *raw]
    assert Prompt(tokenizer).ids(one_turn("")) == [tokenizer.bos_token_id]


def test_a_given_template_overrides_and_bad_ones_are_told(tokenizer: Any) -> None:
    assert (
        tokenizer.decode(Prompt(tokenizer, "{{ bos_token }}Q: {{ messages[0].content }}").ids(one_turn("why")))
        == "<s> Q: why"
    )
    with pytest.raises(ValueError, match="takes no input"):
        Prompt(tokenizer, "{{ messages[0].content }}").ids(one_turn("why", "because"))
    with pytest.raises(ValueError, match="cannot render the message"):
        Prompt(tokenizer, "{{ raise_exception('no') }}").ids(one_turn("why"))
    with pytest.raises(ValueError, match="noncharacters"):
        Prompt(tokenizer).ids(one_turn("".join(GUARDS)))


TEXTS = st.lists(st.sampled_from(["a", "Dabe", " ", "山", "\n", ".", "</s>", "🤖", "  "]), min_size=1).map("".join)


@pytest.mark.parametrize("name", ["alpaca", "alpaca_short", "llama-2"])
def test_a_conversation_has_the_ids_it_was_trained_with(repository: Path, tiny_tokenizer: Path, name: str) -> None:
    """Prompt and answer of every earlier turn as tuning makes them, then the prompt of the last one."""
    words = AutoTokenizer.from_pretrained(tiny_tokenizer)
    words.chat_template = (repository / f"finetune/templates/{name}.jinja").read_text()
    encoder, prompt = Encoder(words), Prompt(words)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), min_size=1, max_size=4))
    def holds(turns: list[tuple[str, str, bool]]) -> None:
        talk: list[Message] = []
        for asked, answered, with_input in turns:
            talk.append({"role": "user", "content": asked, "input": asked if with_input else ""})
            talk.append({"role": "assistant", "content": answered})
        *earlier, last = encoder.turns([cast(Any, talk)])[0]
        trained = [index for turn in earlier for index in (*turn.prompt, *turn.answer, *encoder.end)] + last.prompt
        assert prompt.ids(talk[:-1]) == trained

    holds()


def test_a_conversation_needs_a_template_that_has_a_place_for_it(tokenizer: Any, tiny_checkpoint: Path) -> None:
    talk: list[Message] = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="takes one instruction, not a conversation"):
        Prompt(AutoTokenizer.from_pretrained(tiny_checkpoint)).ids(talk)
    with pytest.raises(ValueError, match="knows the roles user and assistant, not system"):
        Prompt(tokenizer).ids([{"role": "system", "content": "a"}, *talk])
    rewriting = "{{ bos_token }}{% for m in messages %}{{ m.content ~ loop.revindex }}{% endfor %}"
    assert tokenizer.decode(Prompt(tokenizer, rewriting).ids(talk)) == "<s> a3b2c1"


def test_a_published_prompt_file_is_a_template(tokenizer: Any, repository: Path, shared_data: Path) -> None:
    """The alpaca files of older repositories render as finetune's templates do, which were made from them."""
    for name in ("alpaca", "alpaca_short"):
        published = Prompt(tokenizer, read_template(str(shared_data / "templates" / f"{name}.json")))
        ours = Prompt(tokenizer, read_template(str(repository / f"finetune/templates/{name}.jinja")))
        for question in QUESTIONS:
            assert published.ids(one_turn(*question)) == ours.ids(one_turn(*question))


def test_a_prompt_file_is_data(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompt.json"
    odd = 'say "it" \\n {{ bos_token }} {% raw %} 🤖 \n'.replace("{", "{{").replace("}", "}}")
    path.write_text(
        json.dumps({"prompt_input": odd + "{instruction}{input}", "prompt_no_input": odd + "{instruction}"})
    )
    rendered = Prompt(tokenizer, read_template(str(path))).render(one_turn("why", "because"))
    assert rendered == "<s>" + odd.replace("{{", "{").replace("}}", "}") + "whybecause"
    for content in ("[]", "{}", '{"prompt_input": 1, "prompt_no_input": "x"}', "{", '{"prompt_input": "{x}"}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="is no alpaca prompt file"):
            read_template(str(path))
