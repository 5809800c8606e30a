"""finetune/instruction_data/instructions.py: templates, the prompt's ids, the supervised end, truncation."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import RunScript
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_data.instructions import Encoder, Turn, fit, from_alpaca, load_template, plain_text
from instruction_rows import encoded
from json_rows.instruction_rows import iterate_instructions, messages_of
from transformers import AutoTokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.chat_template = load_template("alpaca")
    return tokenizer


def user(instruction: str, given: str = "") -> dict[str, str]:
    return {"role": "user", "content": instruction, "input": given}


@pytest.mark.parametrize("name", ["alpaca", "alpaca_short"])
def test_templates_render_byte_for_byte_like_the_published_format(
    shared_data: Path, tiny_tokenizer: Path, name: str
) -> None:
    published = json.loads((shared_data / f"templates/{name}.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.chat_template = load_template(name)
    for instruction, context in (
        ("List three.", ""),
        ("Extract {entities}.", "Ann %s was born {{here}} in {% raw %} Oslo."),
        ("  spaces \n\n", "\n x \n"),
        ("抽取关系。", "李白生于碎叶。"),
    ):
        kind = "prompt_input" if context else "prompt_no_input"
        expected = published[kind].replace("{instruction}", instruction).replace("{input}", context)
        prompt = tokenizer.apply_chat_template([user(instruction, context)], tokenize=False, add_generation_prompt=True)
        assert prompt == "<s>" + expected
        talk = [user(instruction, context), {"role": "assistant", "content": "Yes."}]
        assert tokenizer.apply_chat_template(talk, tokenize=False) == "<s>" + expected + "Yes.</s>"


def test_prompt_ids_are_the_template_s_own_for_ordinary_text(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS, TEXTS)
    def same(instruction: str, given: str) -> None:
        if any(control in instruction + given for control in encoder.controls):
            return
        talk = [user(instruction, given)]
        assert encoder.prompts([talk])[0] == tokenizer.apply_chat_template(talk, add_generation_prompt=True).input_ids

    same()


def test_control_token_spellings_in_user_text_stay_text(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)
    controls = set(encoder.controls.values())

    @settings(max_examples=150, deadline=None)
    @given(*[st.text("<s>/unk \n\ufdd0山", max_size=30)] * 3)
    def held(instruction: str, given: str, answer: str) -> None:
        prompt = encoder.prompts([[user(instruction, given)]])[0]
        assert [index for index in prompt if index in controls] == [tokenizer.bos_token_id]
        rendered = tokenizer.apply_chat_template([user(instruction, given)], tokenize=False, add_generation_prompt=True)
        assert "<s>" + tokenizer.decode(prompt[1:]) == rendered
        (turn,) = encoder.turns([[user(instruction, given), {"role": "assistant", "content": answer}]])[0]
        assert turn.prompt == prompt
        assert not controls & set(turn.answer)
        assert "<s>" + tokenizer.decode(prompt[1:] + turn.answer) == rendered + answer

    held()


def test_a_base_model_without_template_is_asked_the_bare_text(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    ids = Encoder(tokenizer).prompts([[user("List <s> three.", "of four")], [user("alone")]])
    plain = tokenizer("List <s> three.\nof four", add_special_tokens=False, split_special_tokens=True).input_ids
    assert ids[0] == [tokenizer.bos_token_id, *plain]
    assert plain_text(user("alone")) == "alone"
    with pytest.raises(ValueError, match="prompt_template_name"):
        encoded(tokenizer, [{"instruction": "a", "output": "b"}], 100)


def test_every_row_ends_in_a_supervised_eos_also_when_cut(tokenizer: Any, rows: list[dict[str, str]]) -> None:
    eos = tokenizer.eos_token_id
    whole, report = encoded(tokenizer, rows, 512)
    assert (report.kept, report.truncated, report.dropped.total()) == (len(rows), 0, 0)
    assert report.tokens == sum(len(example.ids) for example in whole)
    lengths = sorted(len(example.ids) for example in whole)
    cutoff = lengths[len(lengths) // 2]
    cut, report = encoded(tokenizer, rows, cutoff)
    assert 0 < report.truncated < len(rows)
    for example in [*whole, *cut]:
        assert example.ids[-1] == eos
        assert eos not in example.ids[:-1]
        (span,) = example.spans
        assert span[0] < span[1] - 1  # at least one token of the answer before EOS
        assert span[1] == len(example.ids)
    assert max(len(example.ids) for example in cut) == cutoff
    for row, example in zip(rows, whole, strict=True):
        start, end = example.spans[0]
        assert tokenizer.decode(example.ids[:end]).endswith(row["output"] + "</s>")
        assert example.ids[:start] == Encoder(tokenizer).prompts([messages_of(row)[:1]])[0]
    everything, _ = encoded(tokenizer, rows, 512, train_on_inputs=True)
    assert [example.spans for example in everything] == [[(0, len(example.ids))] for example in whole]


def test_rows_without_room_or_answer_are_dropped_and_counted(tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "short", "input": None, "output": "yes"},
        {"instruction": "long " * 200, "output": "yes"},
        {"instruction": "silent", "output": ""},
    ]
    examples, report = encoded(tokenizer, rows, 200)
    assert len(examples) == report.kept == 1
    assert report.dropped == {
        "the prompt leaves no room for the answer in 200 tokens": 1,
        "the answer is empty": 1,
    }


@pytest.mark.parametrize(
    ("cutoff", "ids", "spans"),
    [
        (20, [1, 1, 1, 7, 7, 2, 3, 3, 8, 8, 8, 2], [(3, 6), (8, 12)]),
        (10, [1, 1, 1, 7, 7, 2, 3, 3, 8, 2], [(3, 6), (8, 10)]),
        (9, [1, 1, 1, 7, 7, 2], [(3, 6)]),
        (5, [1, 1, 1, 7, 2], [(3, 5)]),
    ],
)
def test_fit_reserves_the_end(cutoff: int, ids: list[int], spans: list[tuple[int, int]]) -> None:
    example, cut = fit([Turn([1, 1, 1], [7, 7]), Turn([3, 3], [8, 8, 8])], [2], cutoff)
    assert example == (ids, spans)
    assert cut == (cutoff < 12)
    assert fit([Turn([1, 1, 1], [7, 7])], [2], 4) == (None, True)


def test_several_turns_are_supervised_each_and_equal_the_template(tokenizer: Any) -> None:
    talk = [
        user("Extract.", "Ann <s> came."),
        {"role": "assistant", "content": '{"person": ["Ann"]}'},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Nothing</s> more."},
    ]
    (example,), _ = encoded(tokenizer, [{"messages": talk}], 512)
    answers = [tokenizer.decode(example.ids[start:end]) for start, end in example.spans]
    assert answers == ['{"person": ["Ann"]}</s>', "Nothing</s> more.</s>"]
    text = tokenizer.decode(example.ids).replace("> Below", ">Below")  # SentencePiece's space before a text
    assert text == tokenizer.apply_chat_template(talk, tokenize=False)
    assert example.ids.count(tokenizer.eos_token_id) == 2
    asked = Encoder(tokenizer).prompts([talk[:3]])[0]
    assert example.ids[: example.spans[1][0]] == asked


def test_a_template_with_another_end_of_turn_keeps_it_and_adds_eos(tiny_tokenizer: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|end|>\n' }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    (example,), _ = encoded(tokenizer, [{"instruction": "a", "output": "b<|end|>"}], 100)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert example.ids[-2:] == [end, tokenizer.eos_token_id]
    assert example.ids.count(end) == 2
    text = tokenizer.decode(example.ids).replace("> \n", ">\n")  # SentencePiece's space before a text
    assert text == "user: a<|end|>\nassistant: b<|end|><|end|></s>"


def test_a_template_that_rewrites_or_refuses_is_an_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(ValueError, match="only appends"):
        Encoder(tokenizer)
    tokenizer.chat_template = load_template("alpaca")
    talk = [{"role": "system", "content": "s"}, user("a"), {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="not system"):
        encoded(tokenizer, [{"messages": talk}], 100)


def test_answers_equal_the_joint_encoding_on_real_rows(
    shared_data: Path, tmp_path: Path, run_script: RunScript
) -> None:
    """On LLaMA-2's tokenizer and the alpaca template nothing merges across the border, so both ways agree."""
    model = shared_data / "llama/tokenizer.model"
    run_script("tools/build_tokenizer.py", "--tokenizer_model", model, "--output_dir", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = load_template("alpaca")
    found = [
        row
        for task in ("NER", "RE", "EE")
        for row in iterate_instructions(shared_data / f"iepile/{task}/train_sorted.zh.json")
    ]
    sample = random.Random(0).sample(found, min(300, len(found)))
    examples, report = encoded(tokenizer, sample, 100_000)
    assert report.kept == len(sample)
    for row, example in zip(sample, examples, strict=True):
        text = tokenizer.apply_chat_template(messages_of(row), tokenize=False)
        assert example.ids == tokenizer(text, add_special_tokens=False).input_ids


def test_the_older_alpaca_file_gives_the_same_prompts_as_the_template(shared_data: Path, tokenizer: Any) -> None:
    for name in ("alpaca", "alpaca_short"):
        older = load_template(str(shared_data / f"templates/{name}.json"))
        for talk in ([user("List {x} three.", "of %s")], [user('say "山" \\ {{x}}')]):
            said = []
            for template in (older, load_template(name)):
                tokenizer.chat_template = template
                said.append(Encoder(tokenizer).prompts([talk])[0])
            assert said[0] == said[1]


def test_an_alpaca_file_is_data_whatever_it_spells(tmp_path: Path, tokenizer: Any) -> None:
    prompt = '{{% raw %}} "quoted" \\n 🤖\n{instruction}|{{x}}\n'
    text = json.dumps({"prompt_input": prompt + "{input}!", "prompt_no_input": prompt})
    tokenizer.chat_template = from_alpaca(text, tmp_path)
    rendered = tokenizer.apply_chat_template([user("I", "J")], tokenize=False, add_generation_prompt=True)
    assert rendered == '<s>{% raw %} "quoted" \\n 🤖\nI|{x}\nJ!'
    for broken in ("{", "[]", '{"prompt_input": "{instruction}"}', '{"prompt_input": "{a}", "prompt_no_input": ""}'):
        with pytest.raises(ValueError, match="is no alpaca prompt file"):
            from_alpaca(broken, tmp_path)


def test_llama_2_s_format_is_meta_s(tokenizer: Any) -> None:
    """White space around the answer belongs to it; every turn begins with BOS; the first carries the system's words."""
    tokenizer.chat_template = load_template("llama-2")
    talk = [
        {"role": "system", "content": "Be brief."},
        user("Who?", "Ann."),
        {"role": "assistant", "content": "Ann"},
        user("And?"),
        {"role": "assistant", "content": "Bo"},
    ]
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    assert text == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho?\nAnn. [/INST] Ann </s><s>[INST] And? [/INST] Bo </s>"
    )
    (example,), _ = encoded(tokenizer, [{"messages": talk}], 512)
    assert example.ids == tokenizer(text, add_special_tokens=False).input_ids
    assert [tokenizer.decode(example.ids[start:end]).strip() for start, end in example.spans] == ["Ann </s>", "Bo </s>"]


def test_chatml_needs_a_tokenizer_that_has_its_tokens(tokenizer: Any) -> None:
    tokenizer.chat_template = load_template("chatml")
    with pytest.raises(ValueError, match=r"writes <\|im_end\|>, which is no control token of this tokenizer"):
        Encoder(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    talk = [user("Say <|im_end|>.", "a"), {"role": "assistant", "content": "b"}]
    (example,), _ = encoded(tokenizer, [{"messages": talk}], 512)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert example.ids.count(start) == example.ids.count(end) == 2
    assert example.ids[-2:] == [end, tokenizer.eos_token_id]


def test_an_unknown_template_lists_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no template 'vicuna'; take one of alpaca, alpaca_short, chatml, llama-2"):
        load_template("vicuna")
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    assert load_template(str(tmp_path / "own.jinja")) == "{{ messages }}"
