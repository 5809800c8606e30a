"""generate_api.py with the real engine: prompt ids, answers, streams, errors, disconnects."""

import json
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages
from routes.generate_api import GenerateAnswer
from routes.sampling_parameters import DEFAULT_MAX_TOKENS
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning_runs import encoded

CONTEXT = 512  # context length of the tiny checkpoint, in tokens
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
    """Return the text of transformers' greedy answer, decoded together with the prompt, and its number of tokens."""
    prompt = torch.tensor([ids])  # (1, tokens) int64
    with torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )[0].tolist()
    before = tokenizer.decode(ids, skip_special_tokens=True)
    return tokenizer.decode(out, skip_special_tokens=True).removeprefix(before), len(out) - len(ids)


def test_generate_accepts_the_published_body(server: Any) -> None:
    body = {"instruction": "你好", "input": "", "parameters": {"top_p": 0.7, "max_tokens": 12}}
    status, answer = server.post("/generate", body)
    assert status == 200
    assert list(answer) == ["generated_text", "num_output_tokens_cf", "error"]
    assert answer["error"] is None
    assert isinstance(answer["generated_text"], str)
    assert 1 <= answer["num_output_tokens_cf"] <= 12


def test_greedy_answers_equal_transformers(server: Any, tokenizer: Any, tuned_checkpoint: Path) -> None:
    """Token counts are equal, and texts are equal up to the random model's first invalid UTF-8 byte."""
    model = AutoModelForCausalLM.from_pretrained(tuned_checkpoint, dtype=torch.float32)
    for instruction, input in QUESTIONS:
        ids = PromptEncoder(tokenizer).prompt_ids(instruction_messages(instruction, input))
        text, tokens = greedy(model, tokenizer, ids, tokens=32)
        readable = text.partition("\ufffd")[0]
        assert readable
        for options in (
            {"temperature": 0, "max_tokens": 32},
            {"do_sample": False, "num_beams": 1, "max_new_tokens": 32},
        ):
            answer = server.generate(instruction, input, **options)
            assert answer["num_output_tokens_cf"] == tokens
            assert answer["generated_text"].partition("\ufffd")[0] == readable


def test_prompt_ids_equal_those_of_tuning(server: Any, tuned_checkpoint: Path) -> None:
    """vLLM's /tokenize renders the ids that precede an answer in tuning, and /generate sends the same ids."""
    tokenizer = AutoTokenizer.from_pretrained(tuned_checkpoint)
    rows = [{"instruction": text, "input": given, "output": "x"} for text, given in QUESTIONS]
    examples = encoded(tokenizer, rows, 512)
    model = json.loads(urllib.request.urlopen(f"{server.url}/v1/models").read())["data"][0]["id"]
    for row, example in zip(rows, examples, strict=True):
        trained = example.ids[: example.spans[0]]
        message = {"role": "user", "content": row["instruction"], "input": row["input"]}
        if not row["input"]:  # vLLM's own routes drop the input
            _, rendered = server.post("/tokenize", {"model": model, "messages": [message], "add_special_tokens": False})
            assert rendered["tokens"] == trained
        body = {"model": model, "prompt": trained, "temperature": 0, "max_tokens": 8}
        _, response = server.post("/v1/completions", body)
        assert response["usage"]["prompt_tokens"] == len(trained)
        generated = server.generate(row["instruction"], row["input"], temperature=0, max_tokens=8)
        assert generated["generated_text"] == response["choices"][0]["text"]


def test_seed_gives_the_same_answer_in_any_batch(server: Any) -> None:
    def ask(seed: int) -> str:
        return server.generate("Name a city.", seed=seed, temperature=1.0, max_tokens=16)["generated_text"]

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(ask, [0, 1, 2, 3] * 2))
    assert together == alone * 2
    assert len(set(alone)) > 1


def test_default_length_is_256_tokens_or_the_rest_of_the_context(server: Any, tokenizer: Any) -> None:
    assert server.generate("short", ignore_eos=True)["num_output_tokens_cf"] == DEFAULT_MAX_TOKENS
    long = "word " * 110
    left = CONTEXT - len(PromptEncoder(tokenizer).prompt_ids(instruction_messages(long)))
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
    ("body", "status", "response"),
    [
        (b'{"instruction": ', 400, "the body is not JSON: Expecting value at character 16"),
        (b"", 422, "the body must be a JSON object; known fields: instruction, input, messages, "),
        ([1], 422, "the body must be a JSON object"),
        ({"input": "x"}, 422, "give either instruction (with its input) or messages"),
        ({"instruction": "x", "messages": [{"role": "user", "content": "y"}]}, 422, "give either instruction"),
        ({"messages": []}, 422, "messages: list should have at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "y"}]}, 422, "the last message must be the user's"),
        ({"messages": [{"role": "tool", "content": "y"}]}, 422, "messages.0.role: input should be 'system', 'user'"),
        (
            {"messages": [{"role": "user", "content": "y", "name": "z"}]},
            422,
            "unknown field of messages name; known: role, content, input",
        ),
        ({"messages": [{"role": "system", "content": "y"}, {"role": "user", "content": "y"}]}, 400, "not system"),
        ({"instruction": "x", "model": "none"}, 404, "there is no model 'none'; served: "),
        ({"instruction": "x", "stream": "yes"}, 422, "stream: input should be a valid boolean"),
        ({"instruction": 7}, 422, "instruction: input should be a valid string"),
        ({"instruction": "x", "parameters": []}, 422, "parameters: input should be"),
        ({"instruction": "x", "system": "y"}, 422, "unknown field system; known: instruction, input, messages, "),
        (b'{"instruction": "\\ud800"}', 422, "half of a surrogate pair"),
        (with_parameters(temprature=1), 422, "unknown parameter temprature; known: max_tokens, "),
        (with_parameters(max_tokens="12"), 422, "parameters.max_tokens: input should be a valid integer"),
        (with_parameters(temperature=True), 422, "parameters.temperature: input should be a valid number"),
        (with_parameters(num_beams=0), 422, "parameters.num_beams: input should be greater than or equal to 1"),
        (with_parameters(num_beams=4, stop="x"), 400, "beam search would ignore stop; remove them or num_beams"),
        (with_parameters(num_beams=4) | {"stream": True}, 400, "beam search cannot stream"),
        (with_parameters(num_beams=200), 400, "num_beams 200 needs 400 log probabilities per step"),
        (with_parameters(num_beams=4, repetition_penalty=0.5), 400, "with num_beams, give 1 or more"),
        (with_parameters(structured_outputs={"regexp": "a"}), 422, "unknown field of structured_outputs regexp"),
        (with_parameters(seed=2**70), 422, "seed: input should be less than"),
        (with_parameters(max_tokens=0), 400, "max_tokens must be at least 1"),
        (with_parameters(max_tokens=10**6), 400, "max_model_len=512"),
        (with_parameters(temperature=-1), 400, "temperature must be non-negative"),
        (with_parameters(top_p=0), 400, "top_p must be in (0, 1]"),
        (with_parameters(do_sample=False, temperature=0.7), 400, "do_sample false contradicts temperature 0.7"),
        ({"instruction": "word " * 600}, 400, "the context 512"),
        ({"instruction": "", "input": ""}, 400, "the instruction and its input are empty; send a text"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "the last message and its input are empty; send a text"),
        (b'{"instruction": "x", "instruction": "y"}', 400, "the body repeats the key 'instruction'; send it once"),
        (b'{"instruction": "\xff"}', 400, "the body is not UTF-8 at byte 17; send UTF-8"),
        pytest.param(b'{"instruction": ' + b"[" * 9000, 400, "the body is nested too deeply", id="nested"),
        pytest.param(b'{"instruction": ' + b"9" * 5000 + b"}", 400, "a number with thousands of digits", id="digits"),
        (b'{"instruction": "x", "parameters": {"logit_bias": {"1": NaN}}}', 400, "the number NaN, which JSON"),
        (b'{"instruction": "x", "parameters": {"logit_bias": {"1": 1e999}}}', 422, "input should be a finite number"),
        (b'{"instruction": "x", "parameters": {"stop": "\\ud800"}}', 422, "half of a surrogate pair"),
        (b'{"instruction": "x", "parameters": {"bad_words": ["\\ud800"]}}', 422, "half of a surrogate pair"),
        (b'{"instruction": "x", "model": "\\ud800"}', 422, "half of a surrogate pair"),
        (
            b'{"instruction": "x", "parameters": {"structured_outputs": {"json": {"a": ["\\ud800"]}}}}',
            422,
            "half of a surrogate pair",
        ),
        (with_parameters(num_beams=2, length_penalty=1e300), 422, "length_penalty: input should be less than"),
        (with_parameters(stop=["x"] * 2000), 422, "at most 1024 items"),
        ({f"field {number}": 1 for number in range(2000)}, 400, "has 2000 keys; send at most 1024"),
        ({"messages": [{"role": "user", "content": "x"}] * 600}, 400, "has 600 messages, the context 512 tokens"),
    ],
)
def test_errors_come_in_the_envelope(server: Any, body: Any, status: int, response: str) -> None:
    answered, answer = server.post("/generate", body)
    assert answered == status
    assert answer == GenerateAnswer(error=answer["error"]).model_dump()
    assert response in answer["error"]
    assert "\n" not in answer["error"]


def test_other_content_type_is_refused_in_the_envelope(server: Any) -> None:
    status, answer = server.post("/generate", {"instruction": "x"}, content_type="text/plain")
    assert status == 415
    assert answer["error"] == "the content type is text/plain; send application/json"


@pytest.mark.parametrize(
    "body", [{"instruction": "x", "model": "n" * 9000}, {"instruction": "x", "u" * 9000: 1}], ids=["model", "field"]
)
def test_errors_do_not_repeat_long_input(server: Any, body: Any) -> None:
    status, answer = server.post("/generate", body)
    assert status in (404, 422)
    assert "n" * 200 not in answer["error"]
    assert "u" * 200 not in answer["error"]


def test_trailing_slash_is_accepted_and_wrong_method_or_route_gets_a_json_error(server: Any) -> None:
    status, answer = server.post("/generate/", with_parameters(max_tokens=2))
    assert (status, answer["error"]) == (200, None)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.url}/generate")
    assert (refused.value.code, refused.value.headers["allow"]) == (405, "POST")
    assert json.load(refused.value) == GenerateAnswer(error="the method is GET; send POST").model_dump()
    status, answer = server.post("/nowhere", {})
    assert (status, answer["error"]["message"]) == (404, "there is no route '/nowhere'; see /docs")


def test_vllms_own_routes_are_served(server: Any) -> None:
    status, answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
    assert status == 200
    assert answer["usage"]["completion_tokens"] <= 3
    chat = {"messages": [{"role": "user", "content": "x"}]}
    status, answer = server.post("/v1/chat/completions", chat)
    assert status == 200
    status, answer = server.post("/v1/chat/completions", chat | {"n": 1 << 20})
    message = answer["error"]["message"]
    assert status == 400 and "n is 1048576, the server accepts " in message and "sequences at once; lower n" in message


def test_log_has_no_prompt_and_no_answer(server: Any) -> None:
    answer = server.generate("Kiwetu-Marolo", temperature=0, max_tokens=24)["generated_text"]
    log = server.log.read_text()
    assert "POST /generate" in log
    assert "Kiwetu-Marolo" not in log
    assert json.dumps(answer)[1:-1] not in log
    assert answer not in log


def streamed(server: Any, **body: Any) -> list[dict[str, Any]]:
    """Return the events of a streamed answer; asserts that it ends with [DONE]."""
    request = urllib.request.Request(
        f"{server.url}/generate", json.dumps(body | {"stream": True}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = answer.read().decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


WRITTEN = [
    "春江潮水连海平，海上明月共潮生。",
    "emoji 🤖🌊 with families 👩‍👩‍👧 and flags 🇨🇳!",
    "rare 龘靐齉 and combined e\u0301\u0323, tabs\tand\nlines  ",
    "</s> <s> as text, U+FFFD itself: \ufffd.",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_cut_answers_end_in_whole_characters(server: Any, text: str) -> None:
    """Constrained decoding forces the text; answers truncated after 1, 4, 7, … tokens are prefixes of it."""
    body: dict[str, Any] = {
        "instruction": "write",
        "parameters": {"seed": 3, "structured_outputs": {"choice": [text]}, "max_tokens": 200},
    }
    status, whole = server.post("/generate", body)
    assert (status, whole["generated_text"].lstrip()) == (200, text.lstrip())
    events = streamed(server, **body)
    assert "".join(event["generated_text"] for event in events) == whole["generated_text"]
    assert events[-1]["num_output_tokens_cf"] == whole["num_output_tokens_cf"]

    def cut(tokens: int) -> str:
        return server.generate("write", **body["parameters"] | {"max_tokens": tokens})["generated_text"]

    with ThreadPoolExecutor(8) as clients:
        for shorter in clients.map(cut, range(1, whole["num_output_tokens_cf"], 3)):
            assert whole["generated_text"].startswith(shorter)


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0, "max_tokens": 40},
        {"seed": 11, "temperature": 1.3, "max_tokens": 40, "ignore_eos": True},
        {"seed": 5, "max_tokens": 60, "stop": ["a", "山"]},
        {"seed": 5, "max_tokens": 60, "stop": "o", "include_stop_str_in_output": True},
    ],
)
def test_stream_equals_the_unstreamed_answer(server: Any, parameters: dict[str, Any]) -> None:
    events = streamed(server, instruction="Name a city.", input="山水", parameters=parameters)
    whole = server.generate("Name a city.", "山水", **parameters)
    assert "".join(event["generated_text"] for event in events) == whole["generated_text"]
    assert [event["error"] for event in events] == [None] * len(events)
    counts = [event["num_output_tokens_cf"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == whole["num_output_tokens_cf"]
    assert "</s>" not in whole["generated_text"]


def test_error_before_a_stream_is_an_ordinary_response(server: Any) -> None:
    status, answer = server.post("/generate", {"instruction": "x", "stream": True, "parameters": {"top_p": 7}})
    assert (status, answer["generated_text"]) == (400, "")
    assert "top_p" in answer["error"]


def test_beam_search_equals_transformers(server: Any, tokenizer: Any, tuned_checkpoint: Path) -> None:
    """Token counts, and texts up to the first invalid UTF-8 byte, are equal; the first settings are published."""
    model: Any = AutoModelForCausalLM.from_pretrained(tuned_checkpoint, dtype=torch.float32)
    for (instruction, input), (beams, penalty, length_penalty) in zip(
        QUESTIONS[:3], [(4, 1.3, 1.0), (3, 1.6, 0.0), (3, 1.0, 1.0)], strict=True
    ):
        ids = PromptEncoder(tokenizer).prompt_ids(instruction_messages(instruction, input))
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), num_beams=beams, max_new_tokens=32,
                do_sample=False, repetition_penalty=penalty, length_penalty=length_penalty, pad_token_id=0,
            )[0].tolist()  # fmt: skip
        before = tokenizer.decode(ids, skip_special_tokens=True)
        text = tokenizer.decode(out, skip_special_tokens=True).removeprefix(before)
        answer = server.generate(
            instruction,
            input,
            num_beams=beams,
            max_new_tokens=32,
            repetition_penalty=penalty,
            length_penalty=length_penalty,
        )
        assert answer["num_output_tokens_cf"] == len(out) - len(ids)
        assert answer["generated_text"].partition("\ufffd")[0] == text.partition("\ufffd")[0]


def test_conversation_is_sent_with_the_ids_of_the_template(server: Any, tokenizer: Any) -> None:
    talk: list[Any] = [
        {"role": "user", "content": "Where was Dabe born?", "input": "Dabe was born in Kilo."},
        {"role": "assistant", "content": "In Kilo."},
        {"role": "user", "content": "写出首都", "input": None},
    ]
    status, answer = server.post("/generate", {"messages": talk, "parameters": {"temperature": 0, "max_tokens": 12}})
    ids = PromptEncoder(tokenizer).prompt_ids([{**turn, "input": turn.get("input") or ""} for turn in talk])
    _, response = server.post("/v1/completions", {"prompt": ids, "temperature": 0, "max_tokens": 12})
    assert (status, answer["generated_text"]) == (200, response["choices"][0]["text"])
    alone = server.generate(talk[0]["content"], talk[0]["input"], temperature=0, max_tokens=12)
    status, single = server.post(
        "/generate", {"messages": talk[:1], "parameters": {"temperature": 0, "max_tokens": 12}}
    )
    assert single == alone


def tokens_computed(server: Any) -> float:
    """Return the number of prompt and generated tokens so far; beam search sends each beam as a new prompt per step."""
    return server.metric_sum("generation_tokens_total", "prompt_tokens_total")


LONG = {"max_tokens": 400, "ignore_eos": True}
LONG_WORK: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"instruction": "x", "parameters": LONG}),
    ("/generate", {"instruction": "x", "parameters": LONG, "stream": True}),
    ("/generate", {"instruction": "x", "parameters": LONG | {"num_beams": 3}}),
    (
        "/extract",
        {"text": "Dabe was born. " * 2000, "task": "re", "schema": ["born in", "works for"], "window_tokens": 40},
    ),
    ("/v1/completions", {"prompt": "x"} | LONG),
]


@pytest.mark.parametrize(("path", "fields"), LONG_WORK)
def test_disconnected_client_stops_its_sequences(server: Any, path: str, fields: dict[str, Any]) -> None:
    """The engine computes no more tokens 0.25 s after the disconnect."""
    body = json.dumps(fields).encode()
    began = tokens_computed(server)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        until = time.monotonic() + 60
        while tokens_computed(server) <= began + 20:
            assert time.monotonic() < until, "the engine did not begin"
            time.sleep(0.02)
    time.sleep(0.25)
    after = tokens_computed(server)
    time.sleep(0.25)
    assert tokens_computed(server) == after
