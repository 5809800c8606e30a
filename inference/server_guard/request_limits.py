"""Rate limits: requests and tokens within a sliding window, per key and per address.

Windows are counted with the sliding window counter of the library `limits`: one number for the current window and one
for the previous window, which is weighted by the part that still overlaps. Compared with a moving window, which stores
an entry for each token, the memory per client does not depend on the limit. Compared with a fixed window, a client
cannot use twice the limit around the start of a window. A window's count expires after two window lengths.
"""

import ipaddress
import math
import time
from collections.abc import Sequence
from itertools import product

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

ROUNDING = 1e-6  # seconds; bound of the floating point error


def parse_limit(text: str, option: str) -> list[RateLimitItem]:
    """Parse `60/minute` or `60/minute;1000/day`; raises ValueError that names the option."""
    try:
        items = parse_many(text)
    except ValueError:
        items = []
    if not items or any(item.amount < 1 for item in items):
        raise ValueError(f"{option} {text} is not a limit; give a number of 1 or more per period, such as 60/minute")
    return items


class RateLimits:
    """The limits of one process and the windows of all its clients."""

    def __init__(self, requests: str | None, tokens: str | None) -> None:
        """requests, tokens: limits in the format of parse_limit, None for no limit. Raises its ValueError."""
        self.requests = parse_limit(requests, "--limit-requests") if requests else []
        self.tokens = parse_limit(tokens, "--limit-tokens") if tokens else []
        self.any = bool(self.requests or self.tokens)
        self.storage = MemoryStorage()
        self.strategy = SlidingWindowCounterRateLimiter(self.storage)

    def count_request(self, client_names: Sequence[str]) -> tuple[int, str]:
        """Count a request for each name of a client if all of their windows have room.

        client_names: the names under which one client is counted: its key and its address. Returns (whole seconds
        until there is room, the limit that is used up), or (0, "") if the request was counted.
        """
        wait, used_up = 0, ""
        for kind, items in (("requests", self.requests), ("tokens", self.tokens)):
            for item, name in product(items, client_names):
                window = item.get_expiry()
                previous, _, current, ends = self.storage.get_sliding_window(item.key_for(kind, name), window)
                seconds = seconds_until_room(previous, current, ends - window, item.amount, window)
                if seconds > wait:
                    wait, used_up = seconds, f"{item.amount} {kind} per {period_name(item)}"
        if not wait:
            for item, name in product(self.requests, client_names):
                self.strategy.hit(item, "requests", name)
        return wait, used_up

    def charge(self, client_names: Sequence[str], tokens: int) -> None:
        """Count a request's tokens for each name of a client; tokens beyond the limit delay later requests."""
        for item, name in product(self.tokens, client_names):
            window = item.get_expiry()
            _, current = self.storage.sliding_window_keys(item.key_for("tokens", name), window, time.time())
            self.storage.incr(current, 2 * window, amount=tokens)


def seconds_until_room(previous: int, current: int, rest: float, amount: int, window: int) -> int:
    """Return the whole seconds until a sliding window has room for one more unit, if nothing else is counted.

    previous, current: counts of the previous and the current window; rest: seconds until the current one ends;
    amount: the limit for `window` seconds. The count is previous * rest / window + current; there is room while it is
    below the amount. (`limits` returns the time at which the count next falls, which is not always enough.)
    """
    if previous * rest / window + current < amount:
        return 0
    if current < amount:  # enough of the previous window slides out before the current one ends
        seconds = rest - (amount - current) * window / previous
    else:  # the current window must end and then slide out
        seconds = rest + window * (current - amount) / current
    return math.floor(seconds + ROUNDING) + 1


def period_name(item: RateLimitItem) -> str:
    """Return the period of a limit, such as `minute` or `5 minutes`."""
    name = item.GRANULARITY.name
    return name if item.multiples == 1 else f"{item.multiples} {name}s"


def client_name(client: tuple[str, int] | None) -> str:
    """Return the name under which a client is counted: its IPv4 address, or its IPv6 /64 network.

    A /64 network usually belongs to one customer. The name of a client without an address is "a socket file".
    """
    try:
        host = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return "a socket file"
    if host.version == 6:
        mapped = host.ipv4_mapped
        return str(mapped or ipaddress.ip_network((int(host) >> 64 << 64, 64)))
    return str(host)
