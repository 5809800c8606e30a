"""grammar_checks/: constraints are tried within limits before vLLM converts and compiles them."""

import asyncio
import mmap
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import regex
from grammar_checks.bounded_process import BoundedProcess, LimitExceededError, QueueFullError
from grammar_checks.grammar_checker import MAX_CHARACTERS, GrammarChecker
from grammar_checks.unicode_classes import expand_unicode_classes

MEMORY = 2**28


def mapped(size: int) -> mmap.mmap:
    """Return `size` bytes of new memory; raises MemoryError. malloc could reuse free memory of the process instead."""
    try:
        return mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError(str(error)) from error


def use(argument: tuple[str, Any]) -> Any:
    """Perform (action, value): double a number, refuse it, spend processor time, take memory, crash, return the pid."""
    word, value = argument
    if word == "refuse":
        raise ValueError(f"no {value}")
    if word == "spin":
        while True:
            pass
    if word == "take":
        return len(mapped(value))
    if word == "crash":
        os.kill(os.getpid(), signal.SIGTRAP)  # faulthandler would delay SIGSEGV
    return os.getpid() if word == "pid" else 2 * value


@pytest.fixture
def process() -> Iterator[BoundedProcess]:
    process = BoundedProcess(lambda: use, seconds=1, memory=MEMORY, max_waiting=3)
    yield process
    process.close()


def test_calls_run_in_processes_of_their_own_and_report_refusals(process: BoundedProcess) -> None:
    assert asyncio.run(process.run(("double", 21))) == 42
    pids = {asyncio.run(process.run(("pid", 0))) for _ in range(3)}
    assert len(pids - {os.getpid(), process.pid}) == 3
    with pytest.raises(ValueError, match=r"^no entry$"):
        asyncio.run(process.run(("refuse", "entry")))


@pytest.mark.parametrize(
    ("argument", "reason"),
    [(("spin", 0), r"^more than 1 s$"), (("take", 2 * MEMORY), "memory"), (("crash", 0), "MiB")],
)
def test_call_beyond_a_limit_is_killed_and_the_next_one_is_answered(
    process: BoundedProcess, argument: Any, reason: str
) -> None:
    with pytest.raises(LimitExceededError, match=reason):
        asyncio.run(process.run(argument))
    assert asyncio.run(process.run(("double", 1))) == 2


def test_killed_child_is_replaced(process: BoundedProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="killed"):
        asyncio.run(process.run(("double", 1)))
    assert asyncio.run(process.run(("double", 1))) == 2


def test_too_many_waiting_calls_are_refused_and_the_event_loop_stays_free(process: BoundedProcess) -> None:
    async def call() -> tuple[list[Any], float]:
        calls = [asyncio.create_task(process.run(("spin" if at == 0 else "double", at))) for at in range(5)]
        longest, last = 0.0, time.monotonic()
        while not all(each.done() for each in calls):
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return await asyncio.gather(*calls, return_exceptions=True), longest

    results, longest = asyncio.run(call())
    assert [type(result) for result in results] == [LimitExceededError, int, int, QueueFullError, QueueFullError]
    assert longest < 0.5


def test_equal_constraints_are_tried_once() -> None:
    tried = []

    class Process:
        async def run(self, constraint: Any) -> Any:
            tried.append(constraint)
            await asyncio.sleep(0.01)
            if constraint == {"regex": "b"}:
                raise LimitExceededError("more than 4 s")
            return constraint

    async def check() -> list[Any]:
        checker = GrammarChecker(Process())  # type: ignore[arg-type]
        twice = [checker.check({"regex": word}) for word in "aabb"]
        first = await asyncio.gather(*twice, return_exceptions=True)
        return [*first, *await asyncio.gather(checker.check({"regex": "b"}), return_exceptions=True)]

    results = asyncio.run(check())
    assert results[:2] == [{"regex": "a"}] * 2
    refusal = "structured_outputs: compiling it takes more than 4 s; send a simpler constraint"
    assert [str(error) for error in results[2:]] == [refusal] * 3
    assert tried == [{"regex": "a"}, {"regex": "b"}]


CHARACTERS = "aZ09 _-]^\\中〇あβé٣\U00020000\u2028😀"


@pytest.mark.parametrize(
    "pattern",
    [r"\p{Han}+", r"\P{Han}", r"[\p{Han}a-c]", r"[^\p{L}\d]", r"[]\p{Nd}]", r"[^]\pL]", r"\\\p{Script=Greek}", r"\pN",
     r"[\P{L}]", r"\p{Lu}|\p{Hiragana}"],
)  # fmt: skip
def test_expanded_pattern_matches_the_same_characters(pattern: str) -> None:
    ranges = expand_unicode_classes(pattern)
    assert not re.search(r"(?<!\\)(?:\\\\)*\\[pP]", ranges)
    ranges = re.sub(r"\\u\{([0-9a-f]+)\}", lambda match: f"\\U{int(match[1], 16):08x}", ranges)
    texts = [*CHARACTERS, *(f"\\{each}" for each in CHARACTERS)]
    matched = [text for text in texts if re.fullmatch(ranges, text)]
    assert matched == [text for text in texts if regex.fullmatch(pattern, text)]
    assert matched


def test_pattern_without_unicode_classes_is_kept() -> None:
    for pattern in (r"\\p{2}", r"[a\]\\]\\pL", "", "(a|b)*", "["):
        assert expand_unicode_classes(pattern) == pattern


def test_unknown_and_too_many_unicode_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown Unicode class 'Hanzi'"):
        expand_unicode_classes(r"\p{Hanzi}")
    with pytest.raises(ValueError, match="too many Unicode classes"):
        expand_unicode_classes(r"\p{L}" * 1000)


def generated(server: Any, constraint: Any) -> tuple[int, Any]:
    body = {"instruction": "x", "parameters": {"structured_outputs": constraint, "max_tokens": 6}}
    status, answer = server.post("/generate", body)
    return status, answer["error"] or answer["generated_text"]


def completed(server: Any, constraint: Any) -> tuple[int, Any]:
    body = {"prompt": "x", "structured_outputs": constraint, "max_tokens": 6}
    status, answer = server.post("/v1/completions", body)
    return status, answer["error"]["message"] if status >= 400 else answer["choices"][0]["text"]


def chatted(server: Any, constraint: Any) -> tuple[int, Any]:
    body = {"messages": [{"role": "user", "content": "x"}], "structured_outputs": constraint, "max_tokens": 6}
    status, answer = server.post("/v1/chat/completions", body)
    return status, answer["error"]["message"] if status >= 400 else answer["choices"][0]["message"]["content"]


def responded(server: Any, constraint: Any) -> tuple[int, Any]:
    status, answer = server.post(
        "/v1/responses", {"input": "x", "structured_outputs": constraint, "max_output_tokens": 16}
    )
    return status, answer["error"]["message"] if status >= 400 else ""


Sender = Callable[[Any, Any], tuple[int, Any]]
SENDERS: list[Sender] = [generated, completed, chatted, responded]
AMBIGUOUS = "root ::= s\ns ::= s s s | s s | [a-z]"
REFUSED = [
    ({"grammar": 'root ::= "a"\nroot ::= "b"'}, 'line 2, column 1: Rule "root" is defined multiple times'),
    ({"json": {"type": "string", "pattern": "^a{129}$"}}, "a repeat in a pattern has at most 128 copies"),
    ({"json": {"$ref": "#"}}, "it allows neither a token nor the end"),
    ({"grammar": 'root ::= "a" b\nb ::= b'}, "it allows neither a token nor the end"),
    ({"grammar": AMBIGUOUS}, "finding the allowed tokens takes more than 0.03 s"),
    ({"regex": "((a{1,100}){1,100}){1,100}"}, "takes more than 0.03 s"),
    ({"regex": ".*" * 4000}, "compiling it takes more than"),
    ({"regex": r"\p{Hanzi}"}, "unknown Unicode class 'Hanzi'"),
    ({"regex": "a" * MAX_CHARACTERS}, f"characters; send at most {MAX_CHARACTERS}"),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "reason"), REFUSED)
def test_constraint_that_cannot_be_served_is_status_400(server: Any, constraint: Any, reason: str) -> None:
    for send in SENDERS:
        status, message = send(server, constraint)
        assert status == 400, (send.__name__, message)
        assert reason in message
        assert "\n" not in message


@pytest.mark.parametrize("send", SENDERS[1:])
def test_hundreds_of_thousands_of_choices_are_refused_while_extract_answers(server: Any, send: Sender) -> None:
    """The largest lists are refused by the limit of elements, shorter ones by the limit of choices."""
    for count, reason in (
        (300_000, " elements (keys and list items); send at most "),
        (200_000, "has 200000 choices; send at most 1024"),
    ):
        choices = {"choice": [f"number {at}" for at in range(count)]}
        began = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            refused = pool.submit(send, server, choices)
            body = {"text": "Dabe was born in Kilo.", "task": "ner", "schema": ["person"], "max_tokens": 9}
            assert server.post("/extract", body)[0] == 200
        status, message = refused.result()
        assert (status, reason in message) == (400, True), message
        assert time.monotonic() - began < 20


def test_unicode_classes_constrain_the_answer(server: Any) -> None:
    for send in SENDERS[:3]:
        status, text = send(server, {"regex": r"\p{Han}{2}"})
        assert (status, bool(regex.fullmatch(r"\p{Han}{2}", text))) == (200, True), text
        status, text = send(server, {"regex": r"\p{Lu}[^\p{L}]"})
        assert (status, bool(regex.fullmatch(r"\p{Lu}[^\p{L}]", text))) == (200, True), text
