"""inference/generate_api.py: prompts as ids, both libraries' parameters, one envelope; against the real engine."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_api import DEFAULT_MAX_TOKENS, GUARDS, GenerateAnswer, Parameters, Prompt, complaint, sampling
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_rows import encoded
from transformers import AutoModelForCausalLM, AutoTokenizer

CONTEXT = 512  # of the tiny checkpoint
QUESTIONS = [
    ("Where was Dabe Kilo born?", ""),
    ("写出首都", "李白生于701年。"),
    ("  spaces,\n\nlines and {{ braces }} {% x %} %s", "input {0} 🤖"),
    ("a </s> in <s> text<unk>", "<s></s> </s"),
]


@pytest.fixture(scope="module")
def tokenizer(tuned_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tuned_checkpoint)


def greedy(model: Any, tokenizer: Any, ids: list[int], tokens: int) -> tuple[str, int]:
    """Text and number of tokens of transformers' greedy answer; the text is decoded behind the prompt's."""
    prompt = torch.tensor([ids])  # (1, tokens) int64
    with torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )[0].tolist()
    before = tokenizer.decode(ids, skip_special_tokens=True)
    return tokenizer.decode(out, skip_special_tokens=True).removeprefix(before), len(out) - len(ids)


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("instruction", "input"), QUESTIONS[:3])
def test_ordinary_text_gives_the_ids_of_the_chat_template(tokenizer: Any, instruction: str, input: str) -> None:
    message = {"role": "user", "content": instruction, "input": input}
    templated = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    assert Prompt(tokenizer).ids(instruction, input) == templated
    assert templated.count(tokenizer.bos_token_id) == 1


def test_spelled_control_tokens_stay_text(tokenizer: Any) -> None:
    """Whatever is written, the only control token is the template's BOS, and the rendering is the template's."""
    prompt = Prompt(tokenizer)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from(["<s>", "</s>", "<unk>", "<", "s>", "a", " ", "山", "\n", GUARDS[0]])).map("".join))
    def holds(text: str) -> None:
        ids = prompt.ids(text, text)
        assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.bos_token_id]
        rendered = prompt.render(text, text)
        assert rendered.startswith("<s>")
        plain = tokenizer.encode(rendered[3:], add_special_tokens=False, split_special_tokens=True)
        assert ids == [tokenizer.bos_token_id, *plain]

    holds()


def test_without_a_template_the_prompt_is_bos_and_the_raw_text(tiny_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    raw = tokenizer.encode("one </s>\ntwo", add_special_tokens=False, split_special_tokens=True)
    assert Prompt(tokenizer).ids("one </s>", "two") == [tokenizer.bos_token_id, *raw]
    assert Prompt(tokenizer).ids("") == [tokenizer.bos_token_id]


def test_a_given_template_overrides_and_bad_ones_are_told(tokenizer: Any) -> None:
    assert tokenizer.decode(Prompt(tokenizer, "{{ bos_token }}Q: {{ messages[0].content }}").ids("why")) == "<s> Q: why"
    with pytest.raises(ValueError, match="takes no input"):
        Prompt(tokenizer, "{{ messages[0].content }}").ids("why", "because")
    with pytest.raises(ValueError, match="cannot render the message"):
        Prompt(tokenizer, "{{ raise_exception('no') }}").ids("why")
    with pytest.raises(ValueError, match="noncharacters"):
        Prompt(tokenizer).ids("".join(GUARDS))


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "asked"),
    [
        ({}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"top_p": 0.7, "max_tokens": 256}, {"top_p": 0.7, "max_tokens": 256}),
        ({"max_new_tokens": 9, "num_beams": 1, "top_k": 0}, {"max_tokens": 9, "top_k": 0}),
        ({"max_new_tokens": 9, "max_tokens": 9}, {"max_tokens": 9}),
        ({"do_sample": False}, {"temperature": 0, "max_tokens": DEFAULT_MAX_TOKENS}),
        ({"do_sample": True, "temperature": 0.3}, {"temperature": 0.3, "max_tokens": DEFAULT_MAX_TOKENS}),
        ({"stop": ["\n"], "seed": None}, {"stop": ["\n"], "max_tokens": DEFAULT_MAX_TOKENS}),
    ],
)
def test_both_libraries_names_map_to_one_set(given_: dict[str, Any], asked: dict[str, Any]) -> None:
    assert sampling(Parameters(**given_), room=1000) == asked


def test_the_default_length_is_what_the_context_has() -> None:
    assert sampling(Parameters(), room=40) == {"max_tokens": 40}


@pytest.mark.parametrize(
    "given_",
    [
        {"max_tokens": 1, "max_new_tokens": 2},
        {"do_sample": False, "temperature": 0.5},
        {"do_sample": True, "temperature": 0},
    ],
)
def test_names_that_contradict_each_other_are_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="contradict"):
        sampling(Parameters(**given_), room=1000)


def test_complaints_are_few() -> None:
    errors = [{"loc": ("body", "parameters", f"p{i}"), "type": "extra_forbidden", "msg": "Extra"} for i in range(50)]
    line, status = complaint(errors)
    assert status == 422
    assert line.startswith("unknown parameter p0, p1, p2, p3, p4; known: max_tokens, ")


# --- the server -------------------------------------------------------------------------------------------------------


def test_body_and_answer_are_the_published_ones(server: Any) -> None:
    body = {"instruction": "你好", "input": "", "parameters": {"top_p": 0.7, "max_tokens": 12}}
    status, answer = server.post("/generate", body)
    assert status == 200
    assert list(answer) == ["generated_text", "num_output_tokens_cf", "error"]
    assert answer["error"] is None
    assert isinstance(answer["generated_text"], str)
    assert 1 <= answer["num_output_tokens_cf"] <= 12


def test_greedy_answers_equal_transformers(server: Any, tokenizer: Any, tuned_checkpoint: Path) -> None:
    """The same number of tokens and the same text, up to where the bytes of a random model are no UTF-8."""
    model = AutoModelForCausalLM.from_pretrained(tuned_checkpoint, dtype=torch.float32)
    for instruction, input in QUESTIONS:
        text, tokens = greedy(model, tokenizer, Prompt(tokenizer).ids(instruction, input), tokens=32)
        readable = text.partition("\ufffd")[0]
        assert readable
        for how in ({"temperature": 0, "max_tokens": 32}, {"do_sample": False, "num_beams": 1, "max_new_tokens": 32}):
            answer = server.generate(instruction, input, **how)
            assert answer["num_output_tokens_cf"] == tokens
            assert answer["generated_text"].partition("\ufffd")[0] == readable


def test_the_server_asks_with_the_ids_that_were_trained_on(server: Any, tuned_checkpoint: Path) -> None:
    """A row's ids before its answer, as tuning makes them: vLLM renders the same, and /generate sends them."""
    tokenizer = AutoTokenizer.from_pretrained(tuned_checkpoint)
    rows = [{"instruction": text, "input": given, "output": "x"} for text, given in QUESTIONS]
    examples, _ = encoded(tokenizer, rows, 512)
    model = json.loads(urllib.request.urlopen(f"{server.url}/v1/models").read())["data"][0]["id"]
    for row, example in zip(rows, examples, strict=True):
        trained = example.ids[: example.spans[0][0]]
        message = {"role": "user", "content": row["instruction"], "input": row["input"]}
        if not row["input"]:  # vLLM's own path drops it
            _, rendered = server.post("/tokenize", {"model": model, "messages": [message], "add_special_tokens": False})
            assert rendered["tokens"] == trained
        body = {"model": model, "prompt": trained, "temperature": 0, "max_tokens": 8}
        _, said = server.post("/v1/completions", body)
        assert said["usage"]["prompt_tokens"] == len(trained)
        asked = server.generate(row["instruction"], row["input"], temperature=0, max_tokens=8)
        assert asked["generated_text"] == said["choices"][0]["text"]


def test_a_seed_gives_the_same_answer_again_among_others(server: Any) -> None:
    def ask(seed: int) -> str:
        return server.generate("Name a city.", seed=seed, temperature=1.0, max_tokens=16)["generated_text"]

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(ask, [0, 1, 2, 3] * 2))
    assert together == alone * 2
    assert len(set(alone)) > 1


def test_without_a_length_the_answer_gets_the_default_or_what_is_left(server: Any, tokenizer: Any) -> None:
    assert server.generate("short", ignore_eos=True)["num_output_tokens_cf"] == DEFAULT_MAX_TOKENS
    long = "word " * 110
    left = CONTEXT - len(Prompt(tokenizer).ids(long))
    assert 0 < left < DEFAULT_MAX_TOKENS
    assert server.generate(long, ignore_eos=True)["num_output_tokens_cf"] == left


def test_stop_ends_the_answer_before_the_string(server: Any) -> None:
    whole = server.generate("Name a city.", temperature=0, max_tokens=24)["generated_text"]
    stop = whole[len(whole) // 2]
    cut = server.generate("Name a city.", temperature=0, max_tokens=24, stop=stop)["generated_text"]
    assert cut == whole[: whole.index(stop)]


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {"instruction": "x", "parameters": parameters}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"instruction": ', 400, "the body is no JSON: Expecting value at character 16"),
        (b"", 422, "the body must be an object"),
        ([1], 422, "the body must be an object"),
        ({"input": "x"}, 422, "instruction: field required"),
        ({"instruction": 7}, 422, "instruction: input should be a valid string"),
        ({"instruction": "x", "parameters": []}, 422, "parameters: input should be"),
        ({"instruction": "x", "system": "y"}, 422, "unknown field system; known: instruction, input, parameters"),
        (b'{"instruction": "\\ud800"}', 422, "half of a surrogate pair"),
        (with_parameters(temprature=1), 422, "unknown parameter temprature; known: max_tokens, "),
        (with_parameters(max_tokens="12"), 422, "parameters.max_tokens: input should be a valid integer"),
        (with_parameters(temperature=True), 422, "parameters.temperature: input should be a valid number"),
        (with_parameters(num_beams=4), 422, "parameters.num_beams: input should be 1"),
        (with_parameters(seed=2**70), 422, "seed: input should be less than"),
        (with_parameters(max_tokens=0), 400, "max_tokens must be at least 1"),
        (with_parameters(max_tokens=10**6), 400, "max_model_len=512"),
        (with_parameters(temperature=-1), 400, "temperature must be non-negative"),
        (with_parameters(top_p=0), 400, "top_p must be in (0, 1]"),
        (with_parameters(do_sample=False, temperature=0.7), 400, "contradict; give one of them"),
        ({"instruction": "word " * 600}, 400, "the context 512"),
    ],
)
def test_errors_come_in_the_envelope(server: Any, body: Any, status: int, said: str) -> None:
    answered, answer = server.post("/generate", body)
    assert answered == status
    assert answer == GenerateAnswer(error=answer["error"]).model_dump()
    assert said in answer["error"]
    assert "\n" not in answer["error"]


def test_another_content_type_is_refused_in_the_envelope(server: Any) -> None:
    status, answer = server.post("/generate", {"instruction": "x"}, content_type="text/plain")
    assert status == 415
    assert answer["error"] == "the content type is text/plain; send application/json"


def test_vllms_own_routes_stand_beside_it(server: Any) -> None:
    status, answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
    assert status == 200
    assert answer["usage"]["completion_tokens"] <= 3
    status, answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    assert status == 200


def test_no_prompt_and_no_answer_in_the_log(server: Any) -> None:
    answer = server.generate("Kiwetu-Marolo", temperature=0, max_tokens=24)["generated_text"]
    log = server.log.read_text()
    assert "POST /generate" in log
    assert "Kiwetu-Marolo" not in log
    assert json.dumps(answer)[1:-1] not in log
    assert answer not in log
