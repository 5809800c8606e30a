"""request_cost.py: the text, the log probabilities and the sequences of one request are limited."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.output_processor import OutputProcessor
from vllm_bridge import request_cost
from vllm_bridge.request_cost import (
    MAX_CHARACTERS,
    MAX_LOG_PROBABILITIES,
    MIN_REQUEST_SEQUENCES,
    Prompt,
    RequestCost,
    count_beam_log_probabilities,
    count_log_probabilities,
    counted_cost,
    limit_generation,
    max_request_sequences,
    warm_up,
)
from vllm_bridge.vllm_imports import from_vllm


def test_request_may_have_half_of_the_engines_sequences_but_at_least_16() -> None:
    counts = [max_request_sequences(count) for count in (1, 2, 64, 256)]
    assert counts == [MIN_REQUEST_SEQUENCES, MIN_REQUEST_SEQUENCES, 32, 128]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0),
        ({"logprobs": 4, "max_tokens": 10}, 50),
        ({"logprobs": 0, "max_tokens": 10, "n": 3}, 30),
        ({"logprobs": -1, "max_tokens": 2}, 1600),
        ({"prompt_logprobs": 9, "max_tokens": 1}, 30),
        ({"logprob_token_ids": [1, 2], "max_tokens": 10}, 30),
        ({"logprobs": 200, "max_tokens": 1, "detokenize": False}, 0),  # a step of a beam search
        ({"logprobs": 4, "max_tokens": 10, "detokenize": False}, 50),  # a caller of /inference/v1/generate may send it
        ({"prompt_logprobs": 9, "max_tokens": 1, "detokenize": False}, 30),
    ],
)
def test_log_probabilities_are_counted_by_answer_and_token(fields: dict[str, Any], expected: int) -> None:
    from vllm.sampling_params import SamplingParams

    prompt = {"type": "token", "prompt_token_ids": [1, 2, 3]}
    assert count_log_probabilities(prompt, SamplingParams(**fields), 800) == expected


PROCESSOR = OutputProcessor(None, log_stats=False)


def test_prompts_run_in_order_and_a_cancelled_prompt_blocks_no_other() -> None:
    """Six prompts with three answers each share four sequences, so one prompt runs at a time."""
    running, most, ended = 0, 0, []

    async def run(cost: RequestCost, name: int) -> None:
        nonlocal running, most
        async with cost.turn_of(Prompt(f"{name}", 5, 3), PROCESSOR, 10):
            running += 3
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 3
        ended.append(name)

    async def run_all() -> bool:
        cost = RequestCost(4)
        tasks = [asyncio.create_task(run(cost, name)) for name in range(6)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        async with cost.turn_of(Prompt("last", 5, 4), PROCESSOR, 10) as has_waited:
            return has_waited

    assert asyncio.run(run_all()) is False
    assert (most, ended) == (3, [0, 2, 3, 4, 5])


def test_prompt_that_waits_for_its_last_sequence_reports_it() -> None:
    """Two of three sequences are free. A prompt that has waited for the third also waits while the queue is full."""

    async def run_two() -> bool:
        cost = RequestCost(3)
        first = cost.turn_of(Prompt("first", 5, 1), PROCESSOR, 10)
        await first.__aenter__()
        second = cost.turn_of(Prompt("second", 5, 3), PROCESSOR, 10)
        entering = asyncio.create_task(second.__aenter__())
        await asyncio.sleep(0.01)
        assert not entering.done()
        await first.__aexit__(None, None, None)
        has_waited = await asyncio.wait_for(entering, 10)
        await second.__aexit__(None, None, None)
        return has_waited

    assert asyncio.run(run_two())


def test_prompt_waits_until_the_prompts_before_it_have_their_first_output() -> None:
    """A prompt of more tokens than the bound waits until no other prompt is without output."""
    processor, state = OutputProcessor(None, log_stats=False), SimpleNamespace(is_prefilling=True)

    async def run_all() -> list[bool]:
        cost, waited = RequestCost(16), []
        async with cost.turn_of(Prompt("first", 6, 1), processor, 10) as has_waited:
            waited.append(has_waited)
            processor.external_req_ids["first"].append("first-1")
            processor.request_states["first-1"] = state  # type: ignore[assignment]
            async with cost.turn_of(Prompt("second", 3, 1), processor, 10) as has_waited:
                waited.append(has_waited)
            third = asyncio.create_task(anext(entered(cost)))
            await asyncio.sleep(0.05)
            assert not third.done()
            state.is_prefilling = False
            waited.append(await asyncio.wait_for(third, 10))
        return waited

    async def entered(cost: RequestCost) -> Any:
        async with cost.turn_of(Prompt("third", 20, 1), processor, 10) as has_waited:
            yield has_waited

    assert asyncio.run(run_all()) == [False, False, True]


class Engine:
    """An engine whose queue is full at some calls; it has the members of AsyncLLM that request_cost.py uses."""

    def __init__(self, full: Sequence[int] = (), tasks: Sequence[str] = ("generate",)) -> None:
        self.calls, self.full, self.tasks = 0, full, tasks
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 800)
        self.renderer = SimpleNamespace(validate_token_ids=lambda token_ids: None)
        self.output_processor = OutputProcessor(None, log_stats=False)
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_batched_tokens=1000))

    async def get_supported_tasks(self) -> Sequence[str]:
        return self.tasks

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[str]:
        self.calls += 1
        if self.calls in self.full:
            raise from_vllm("QueueOverflowError")
        await asyncio.sleep(0.001)
        yield request_id


def test_requests_of_a_dead_engine_get_errors_of_their_own() -> None:
    """vLLM raises one object for all requests; for hundreds of requests, its traceback filled hundreds of MB of log."""
    from vllm.sampling_params import SamplingParams

    shared = from_vllm("EngineDeadError")()

    class DeadEngine(Engine):
        async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[str]:
            raise shared
            yield ""

    engine = DeadEngine()
    limit_generation(engine)

    async def read() -> int:
        with pytest.raises(type(shared)) as error:
            await anext(engine.generate({}, SamplingParams(), "x"))
        return len(error.traceback)

    lengths = [asyncio.run(read()) for _ in range(3)]
    assert lengths[0] == lengths[2]


def test_prompt_that_waits_for_a_full_queue_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.sampling_params import SamplingParams

    monkeypatch.setattr(request_cost, "OVERFLOW_PAUSE", 0.001)
    engine = Engine(full=range(2, 40))
    limit_generation(engine)
    params = SamplingParams(max_tokens=100, logprobs=99)  # 10,000 log probabilities

    async def read(name: str) -> list[str]:
        return [output async for output in engine.generate({}, params, name)]

    async def read_two() -> list[list[str]]:
        with counted_cost(1):
            return [*await asyncio.gather(read("a"), read("b"))]

    assert (asyncio.run(read_two()), engine.calls) == ([["a"], ["b"]], 40)


@pytest.mark.parametrize(
    ("handler", "fields", "counted"),
    [
        ("openai_serving_chat.create_chat_completion", {"logprobs": True, "top_logprobs": 3, "n": 4}, 4),
        ("openai_serving_chat.create_chat_completion", {"logprobs": True, "top_logprobs": None, "n": 4}, 1),
        ("openai_serving_chat.create_chat_completion", {"logprobs": False, "top_logprobs": None, "n": 4}, 0),
        ("openai_serving_completion.create_completion", {"logprobs": 20, "n": 4}, 9),
        ("openai_serving_completion.create_completion", {"logprobs": -1, "n": 4}, 9),
        ("openai_serving_completion.create_completion", {"logprobs": 0, "n": None}, 1),
        ("openai_serving_completion.create_completion", {"logprobs": None, "n": 4}, 0),
    ],
)
def test_only_log_probabilities_in_the_response_of_a_beam_search_are_counted(
    handler: str, fields: dict[str, Any], counted: int
) -> None:
    from vllm.sampling_params import SamplingParams

    engine, (name, method) = Engine(), handler.split(".")
    limit_generation(engine)

    async def search(request: Any, raw_request: Any) -> None:
        step = SamplingParams(max_tokens=1, logprobs=8, detokenize=False)
        for _ in range(2):
            assert [output async for output in engine.generate({}, step, "x")] == ["x"]

    state = SimpleNamespace(**{name: SimpleNamespace(**{method: search})})
    count_beam_log_probabilities(state)
    with counted_cost(1) as cost:
        request = SimpleNamespace(use_beam_search=True, **fields)
        asyncio.run(getattr(getattr(state, name), method)(request, None))
    assert cost.log_probabilities == 2 * counted


def test_bad_words_count_as_text() -> None:
    from vllm.sampling_params import SamplingParams

    engine = Engine()
    limit_generation(engine)

    async def read() -> None:
        with counted_cost(1):
            await anext(engine.generate({}, SamplingParams(bad_words=["ab" * MAX_CHARACTERS]), "a"))

    with pytest.raises(from_vllm("VLLMValidationError"), match=f"more than {MAX_CHARACTERS} characters"):
        asyncio.run(read())


@pytest.mark.parametrize(("full", "tasks", "calls"), [((1,), ["generate"], 1), ((), ["embed"], 0)])
def test_server_starts_where_no_token_can_be_generated(full: Sequence[int], tasks: list[str], calls: int) -> None:
    engine = Engine(full, tasks)
    asyncio.run(warm_up(engine))
    assert engine.calls == calls


TEXT = "a " * (MAX_CHARACTERS // 2 + 1)
MESSAGES = [{"role": "user", "content": TEXT}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": TEXT}),
        ("/tokenize", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": TEXT, "truncate_prompt_tokens": 4}),
        ("/v1/completions", {"prompt": [TEXT[: MAX_CHARACTERS // 4]] * 5, "truncate_prompt_tokens": 4}),
        ("/v1/chat/completions", {"messages": MESSAGES, "truncate_prompt_tokens": 4}),
        ("/v1/responses", {"input": TEXT, "truncation": "auto"}),
        ("/invocations", {"prompt": TEXT, "truncate_prompt_tokens": 4}),
    ],
)
def test_long_text_is_refused_where_vllm_would_truncate_it(server: Any, path: str, body: dict[str, Any]) -> None:
    status, answer = server.post(path, body | {"max_tokens": 4})
    assert (status, f"more than {MAX_CHARACTERS} characters" in answer["error"]["message"]) == (400, True), answer


def test_long_text_below_the_limit_is_tokenised(server: Any) -> None:
    status, answer = server.post("/tokenize", {"prompt": "a " * (MAX_CHARACTERS // 2)})
    assert (status, answer["count"] > MAX_CHARACTERS // 2) == (200, True)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "max_tokens": 256, "logprobs": 256},
        {"prompt": "x", "max_tokens": 64, "logprobs": 31, "n": 33},
        {"prompt": ["x"] * 65, "max_tokens": 64, "logprobs": 15},
        {"prompt": [[7] * 300], "max_tokens": 1, "prompt_logprobs": 255},
        {"prompt": "x", "max_tokens": 256, "logprobs": 31, "n": 32, "use_beam_search": True},
    ],
)
def test_more_log_probabilities_than_the_limit_are_refused(server: Any, body: dict[str, Any]) -> None:
    status, answer = server.post("/v1/completions", body)
    assert (status, f"more than {MAX_LOG_PROBABILITIES}" in answer["error"]["message"]) == (400, True), answer


def test_request_of_many_prompts_leaves_room_for_others(server: Any) -> None:
    """300 prompts of 100 tokens; a short request beside them ends long before them."""
    body = {"prompt": [f"{at}" for at in range(300)], "max_tokens": 100, "ignore_eos": True, "temperature": 0}
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(server.post, "/v1/completions", body)
        for _ in range(3):
            server.generate("x", max_tokens=1)
        assert not many.done()
        assert server.metric_sum("num_requests_running", "num_requests_waiting") <= 128
        status, answer = many.result()
    assert (status, len(answer["choices"]), answer["usage"]["completion_tokens"]) == (200, 300, 30_000)
    assert [choice["index"] for choice in answer["choices"]] == [*range(300)]


def test_prompt_with_more_answers_than_a_request_may_have_is_refused(server: Any) -> None:
    status, answer = server.post("/v1/completions", {"prompt": "x", "n": 200, "max_tokens": 1})
    assert status == 400
    assert "n is 200, but a request may have " in answer["error"]["message"]
    assert server.post("/v1/completions", {"prompt": "x", "n": 16, "max_tokens": 1})[0] == 200
