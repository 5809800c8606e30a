"""Count the requests, tokens and cost of a run."""

from typing import Any

from endpoint_requests.request_journal import Completion

PRICE_TOKENS = 1_000_000  # prices are per million tokens
MAX_ERRORS = 20  # different messages in the run record


class RequestTotals:
    """Totals over the requests of a run, whether they were answered now or are in the journal.

    Attributes:
        requests, failed: different requests, and those among them without an answer.
        empty, cut: answers without text, and answers that end at the token limit.
        asked, retries: requests and repeated attempts of this process; not the same after an interruption.
    """

    def __init__(self, input_price: float = 0.0, output_price: float = 0.0) -> None:
        """input_price, output_price: per million tokens of prompts and of answers. Raises ValueError if negative."""
        for name, price in (("input_price", input_price), ("output_price", output_price)):
            if price < 0:
                raise ValueError(f"--{name} {price} is negative; give the price of a million tokens")
        self.input_price, self.output_price = input_price, output_price
        self.requests = self.failed = self.empty = self.cut = self.uncounted = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.asked = self.retries = 0
        self.errors: dict[str, int] = {}

    def add(self, completion: Completion) -> None:
        """Count the answer to a request."""
        self.requests += 1
        self.failed += bool(completion.error)
        self.empty += not completion.error and not completion.text.strip()
        self.cut += completion.finish_reason == "length"
        if completion.error:
            known = completion.error in self.errors or len(self.errors) < MAX_ERRORS
            name = completion.error if known else "other errors"
            self.errors[name] = self.errors.get(name, 0) + 1
        elif completion.prompt_tokens is None or completion.completion_tokens is None:
            self.uncounted += 1
        self.prompt_tokens += completion.prompt_tokens or 0
        self.completion_tokens += completion.completion_tokens or 0

    @property
    def cost(self) -> float:
        """The cost in the currency of the prices; 0 without prices."""
        priced = self.prompt_tokens * self.input_price + self.completion_tokens * self.output_price
        return priced / PRICE_TOKENS

    def record(self) -> dict[str, Any]:
        """Return the totals for a run record; they do not depend on interruptions."""
        return {
            "requests": self.requests, "failed": self.failed, "empty": self.empty, "cut": self.cut,
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "without_token_count": self.uncounted, "cost": round(self.cost, 6),
            "errors": dict(sorted(self.errors.items())),
        }  # fmt: skip

    def summary(self) -> str:
        """Return one line for the terminal."""
        parts = [f"{self.requests} requests ({self.requests - self.asked} from the journal)"]
        parts += [f"{self.retries} retries"] * bool(self.retries)
        if self.errors:
            parts.append(f"{self.failed} failed ({max(self.errors, key=lambda error: self.errors[error])})")
        parts += [f"{self.empty} empty"] * bool(self.empty)
        parts += [f"{self.cut} cut at the token limit"] * bool(self.cut)
        parts.append(f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens")
        parts += [f"{self.uncounted} answers without a token count"] * bool(self.uncounted)
        if self.input_price or self.output_price:
            parts.append(f"cost {self.cost:.4f}")
        return ", ".join(parts)
