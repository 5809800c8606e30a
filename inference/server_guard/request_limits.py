"""How much a caller may ask for: requests and tokens within a sliding window, per key and per address.

A window is counted as `limits` does for its sliding window counter: two numbers for each caller, those of the running
window and of the one before, which weighs less and less as it slides out. So a caller costs the same few bytes whether
a thousand or a million tokens are allowed (a moving window keeps an entry for each), and nobody gets twice the amount
around the turn of a window (as with a fixed one). Windows are forgotten once they are two windows old.
"""

import ipaddress
import math
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

ROUNDING = 1e-6  # seconds; what reckoning with a window's shares may be short of

SEQUENCES: ContextVar[list[Any] | None] = ContextVar("SEQUENCES", default=None)


def parse_limit(text: str, option: str) -> list[RateLimitItem]:
    """The windows of `60/minute` or `60/minute;1000/day`.

    Raises ValueError where the text says something else, naming the option it was given to.
    """
    try:
        items = parse_many(text)
    except ValueError:
        items = []
    if not items or any(item.amount < 1 for item in items):
        raise ValueError(f"{option} {text} is no limit; give an amount of 1 or more and a time, such as 60/minute")
    return items


class Limits:
    """The windows of all callers of one process."""

    def __init__(self, requests: str | None, tokens: str | None) -> None:
        """requests, tokens: as parse_limit takes them; None: not limited. Raises ValueError as it does."""
        self.requests = parse_limit(requests, "--limit-requests") if requests else []
        self.tokens = parse_limit(tokens, "--limit-tokens") if tokens else []
        self.storage = MemoryStorage()
        self.strategy = SlidingWindowCounterRateLimiter(self.storage)

    def arrive(self, callers: Sequence[str]) -> tuple[int, str]:
        """Count a request against each of the callers, where all of them have room in all of their windows.

        callers: the names under which one caller is known, such as its key and its address. Returns the whole seconds
        after which there is room, and which limit is used up; (0, "") where the request was counted.
        """
        wait, used_up = 0, ""
        for kind, items in (("requests", self.requests), ("tokens", self.tokens)):
            for item in items:
                seconds = max(self.wait(item, kind, caller) for caller in callers)
                if seconds > wait:
                    wait, used_up = seconds, f"{item.amount} {kind} per {period(item)}"
        if not wait:
            for item in self.requests:
                for caller in callers:
                    self.strategy.hit(item, "requests", caller)
        return wait, used_up

    def charge(self, callers: Sequence[str], tokens: int) -> None:
        """Count an answer's tokens, prompt included, against each of the callers, also beyond what had room.

        What is beyond is not forgiven: it weighs on the next window.
        """
        for item in self.tokens:
            window = item.get_expiry()
            for caller in callers:
                key = item.key_for("tokens", caller)
                _, current = self.storage.sliding_window_keys(key, window, time.time())
                self.storage.incr(current, 2 * window, amount=tokens)

    def wait(self, item: RateLimitItem, kind: str, caller: str) -> int:
        """Whole seconds until the caller has room for one more in the window; 0: it has."""
        previous, _, current, ends = self.storage.get_sliding_window(item.key_for(kind, caller), item.get_expiry())
        window = item.get_expiry()
        return seconds_until_room(previous, current, ends - window, item.amount, window)


def seconds_until_room(previous: int, current: int, rest: float, amount: int, window: int) -> int:
    """Whole seconds after which a sliding window has room for one more if nothing else is counted; 0: it has now.

    previous, current: what the window before and the running one counted; rest: seconds until the running one ends;
    amount: what is allowed in `window` seconds. The count is previous * rest / window + current, and there is room
    while it is below the amount. (`limits` says when the count next falls, which need not make room.)
    """
    if previous * rest / window + current < amount:
        return 0
    if current < amount:  # the window before slides out far enough while this one runs
        seconds = rest - (amount - current) * window / previous
    else:  # this one must end, and then slide out in turn
        seconds = rest + window * (current - amount) / current
    return math.floor(seconds + ROUNDING) + 1


def period(item: RateLimitItem) -> str:
    """minute, or 5 minutes."""
    name = item.GRANULARITY.name
    return name if item.multiples == 1 else f"{item.multiples} {name}s"


def address(client: tuple[str, int] | None) -> str:
    """The name under which a peer is counted: its address, of IPv6 the /64 that one customer has as a rule."""
    try:
        host = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return "a socket file"
    if host.version == 6:
        mapped = host.ipv4_mapped
        return str(mapped or ipaddress.ip_network((int(host) >> 64 << 64, 64)))
    return str(host)


# --- what an answer cost ----------------------------------------------------------------------------------------------


def tokens_used(state: dict[str, Any], sequences: Sequence[Any]) -> int:
    """Tokens of an answer and its prompt, by whoever knows best.

    state: the request's, where a handler leaves `knowlm_usage` (tokens), or vLLM's its request_metadata; sequences:
    what the engine was asked for, by which an answer counts that nobody waited for until its end.
    """
    if (told := state.get("knowlm_usage")) is not None:
        return told
    if usage := getattr(state.get("request_metadata"), "final_usage_info", None):
        return usage.prompt_tokens + (usage.completion_tokens or 0)
    return sum(one.prompt_len + (one.detokenizer.num_output_tokens() if one.detokenizer else 0) for one in sequences)


def note_sequences(processor: Any) -> None:
    """Let vLLM's output processor add each sequence that it begins to the list in SEQUENCES, where there is one.

    The sequence's object goes on counting its tokens by itself until it is finished or aborted.
    """
    begin = processor.add_request

    def begin_and_note(request: Any, *others: Any, **named: Any) -> None:
        begin(request, *others, **named)
        begun = SEQUENCES.get()
        if begun is not None and (sequence := processor.request_states.get(request.request_id)):
            begun.append(sequence)

    processor.add_request = begin_and_note
