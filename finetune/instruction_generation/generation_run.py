"""The requests of a generation run. Requests are planned in rounds, so results do not depend on the order of answers.

Each request has a sampling seed that is derived from the run's seed and from the request's place in the plan. The
same options and answers therefore give the same rows, regardless of concurrency and interruptions.
"""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from endpoint_requests.endpoint_client import EndpointClient
from endpoint_requests.request_journal import Completion
from json_rows.instruction_rows import InstructionRow, messages_of

HEADING = re.compile(
    r"(?i)(?:[*#\s]{0,4}(?:\d{1,3}\s?[.)、．]|(?:new |rewritten )?(?:question|task|instruction|prompt)[*#\s]{0,4}:"
    r"|新?(?:问题|任务|指令)[*\s]{0,4}[:：])[*\s]{0,4}(?!\d))+"
)


class GeneratedRows(NamedTuple):
    """The rows of a run, and the number of candidates that were rejected, by reason."""

    rows: list[InstructionRow]
    rejected: Counter[str]


class PlannedRequest(NamedTuple):
    """A prompt and its place in the plan."""

    prompt: str | list[dict[str, str]]  # one user message, or a conversation
    place: tuple[object, ...]  # step, round, number, …; distinguishes the seeds of a run
    temperature: float | None = None  # None: the run's temperature


class GenerationRun:
    """Sends planned requests with derived seeds.

    Attributes:
        language: "en" or "zh", the language of the prompts and of the generated rows.
        round_size: requests in a round of the methods that generate from their own earlier results.
    """

    def __init__(
        self, client: EndpointClient, language: str, seed: int, temperature: float, max_tokens: int,
        round_size: int = 16,
    ) -> None:  # fmt: skip
        self.client, self.language, self.seed = client, language, seed
        self.temperature, self.max_tokens, self.round_size = temperature, max_tokens, round_size

    def derived_seed(self, *place: object) -> int:
        """Return a seed of 31 bits for a place in the plan."""
        digest = hashlib.blake2b(json.dumps([self.seed, *place]).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 33

    def random(self, *place: object) -> random.Random:
        """Return a random generator for a place in the plan."""
        return random.Random(self.derived_seed("random", *place))

    def ask(self, planned: Iterable[PlannedRequest], description: str) -> list[Completion]:
        """Return the answer to each request, in their order."""
        bodies = [
            self.client.request(
                one.prompt, self.derived_seed(*one.place),
                self.temperature if one.temperature is None else one.temperature, self.max_tokens,
            )
            for one in planned
        ]  # fmt: skip
        return self.client.complete(bodies, description)


def without_heading(text: str) -> str:
    """Return a generated text without the number and heading ("8. Task: …") that models repeat before it."""
    text = text.strip()
    heading = HEADING.match(text)
    return text[heading.end() :] if heading else text


def question_text(row: InstructionRow) -> str:
    """Return the last question of a row: instruction and input, or the last user message, separated by a blank line."""
    asked = next(message for message in reversed(messages_of(row)) if message["role"] == "user")
    return "\n\n".join(text for text in (asked["content"].strip(), (asked.get("input") or "").strip()) if text)
