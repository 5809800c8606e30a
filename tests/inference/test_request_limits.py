"""request_limits.py: sliding windows, waiting times, expiry of callers."""

import math
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from server_guard.request_limits import RateLimits, client_name, parse_limit, seconds_until_room


def test_parse_limit_reads_limits_and_refuses_other_text() -> None:
    assert [(item.amount, item.get_expiry()) for item in parse_limit("60/minute;1000/5 hours", "--x")] == [
        (60, 60), (1000, 5 * 3600)
    ]  # fmt: skip
    for text in ("", "60", "60/fortnight", "0/minute", "-1/minute", "1/minute;0/day", "a/b"):
        with pytest.raises(ValueError, match=f"--limit-tokens {text} is not a limit; give a number of 1 or more"):
            parse_limit(text, "--limit-tokens")


@settings(max_examples=500, deadline=None)
@example(previous=0, current=48, rest=0.0, amount=31, window=3600)
@given(
    previous=st.integers(0, 300), current=st.integers(0, 300), rest=st.floats(0, 1), amount=st.integers(1, 100),
    window=st.sampled_from([1, 60, 3600]),
)  # fmt: skip
def test_seconds_until_room_is_the_first_second_with_room(
    previous: int, current: int, rest: float, amount: int, window: int
) -> None:
    rest *= window

    def counted(later: float) -> float:
        """Return the count of the window after `later` seconds without requests."""
        if later < rest:
            return previous * (rest - later) / window + current
        return current * max(0.0, window - (later - rest)) / window

    wait = seconds_until_room(previous, current, rest, amount, window)
    assert counted(wait) < amount
    assert wait == 0 or counted(wait - 1) >= amount or math.isclose(counted(wait - 1), amount)


@pytest.mark.integration
def test_request_is_admitted_after_the_announced_wait() -> None:
    """The windows of the library `limits` are filled to the last request, in real time."""
    limits = RateLimits("3/2 seconds", None)
    for _ in range(2):
        while not (refused := limits.count_request(["a", "b"]))[0]:
            pass
        assert refused[1] == "3 requests per 2 seconds"
        assert 1 <= refused[0] <= 4
        time.sleep(refused[0])
        assert limits.count_request(["a", "b"]) == (0, "")


def test_every_name_of_a_caller_must_have_room() -> None:
    limits = RateLimits("2/day", None)
    assert limits.count_request(["key 0", "10.0.0.1"]) == (0, "")
    assert limits.count_request(["key 0", "10.0.0.2"]) == (0, "")
    assert limits.count_request(["key 0", "10.0.0.3"])[0] > 0
    assert limits.count_request(["key 1", "10.0.0.1"]) == (0, "")
    assert limits.count_request(["key 1", "10.0.0.1"])[0] > 0
    assert limits.count_request(["key 1", "10.0.0.4"]) == (0, "")  # refused requests are not counted


def test_tokens_beyond_the_limit_count_in_the_next_window() -> None:
    limits = RateLimits("9/minute", "100/minute")
    limits.charge(["a"], 99)
    assert limits.count_request(["a"]) == (0, "")
    limits.charge(["a"], 101)
    wait, used_up = limits.count_request(["a"])
    assert used_up == "100 tokens per minute"
    assert 30 <= wait <= 90 + 1  # 200 of 100 tokens: until this minute and half of the next have passed
    assert limits.count_request(["b"]) == (0, "")


def test_callers_expire_after_two_windows() -> None:
    limits = RateLimits("1/second", None)
    for number in range(5000):
        limits.count_request([f"10.1.{number >> 8}.{number & 255}"])
    assert len(limits.storage.storage) > 1000
    time.sleep(2.1)
    limits.count_request(["10.2.0.1"])
    time.sleep(0.5)
    assert len(limits.storage.storage) == len(limits.storage.expirations) == 1


def test_client_name_is_a_host_or_an_ipv6_network() -> None:
    assert client_name(("192.0.2.7", 4000)) == "192.0.2.7"
    assert client_name(("::ffff:192.0.2.7", 4000)) == "192.0.2.7"
    assert client_name(("2001:db8:1:2:3:4:5:6", 4000)) == "2001:db8:1:2::/64"
    assert client_name(None) == client_name(("", 0)) == "a socket file"
