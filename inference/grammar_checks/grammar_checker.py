"""Check the constraints of answers: JSON schemas, patterns, choices, EBNF and Lark grammars, structural tags.

vLLM converts a constraint on the event loop and compiles it in the engine, without a limit: one request could stop all
others, and a constraint that only the compiler refuses is answered with status 500. So each new constraint of a client
is first tried in a process of its own (bounded_process.py, vllm_bridge/grammar_trial.py).
"""

import asyncio
import json
from hashlib import sha256
from typing import Any

from grammar_checks.bounded_process import BoundedProcess, LimitExceededError

MAX_CHARACTERS = 2**16
MAX_CHOICES = 1024
TRIAL_SECONDS = 3  # processor time
TRIAL_MEMORY = 2**31  # bytes
MAX_WAITING = 16  # trials that wait or run; further requests get status 503
MAX_KNOWN = 4096  # results that are kept

Constraint = dict[str, Any]  # fields of vLLM's StructuredOutputsParams that are given
Result = tuple[Constraint | None, str]  # (constraint for the engine, ""), or (None, reason of the refusal)


class GrammarChecker:
    """Checks constraints. Equal constraints are tried once, and the last MAX_KNOWN results are kept."""

    def __init__(self, process: BoundedProcess) -> None:
        self.process = process
        self.known: dict[bytes, Result] = {}
        self.running: dict[bytes, asyncio.Task[None]] = {}

    async def check(self, constraint: Constraint) -> Constraint:
        """Return the constraint for the engine, in which Unicode classes are replaced by ranges.

        Raises ValueError with the reason if the constraint exceeds a limit or cannot be compiled, QueueFullError if too
        many trials wait, and RuntimeError if the trial fails for another reason.
        """
        text = constraint_text(constraint)
        key = sha256(text.encode("utf-8", "surrogatepass")).digest()
        if key not in self.known:
            if key not in self.running:
                self.running[key] = asyncio.create_task(self.try_out(key, constraint))
            await asyncio.shield(self.running[key])  # a client that disconnects does not end a trial that others await
        checked, reason = self.known[key]
        if checked is None:
            raise ValueError(reason)
        return checked

    async def try_out(self, key: bytes, constraint: Constraint) -> None:
        try:
            result: Result = await self.process.run(constraint), ""
        except ValueError as error:
            result = None, f"structured_outputs: {error}"
        except LimitExceededError as error:
            result = None, f"structured_outputs: compiling it takes {error}; send a simpler constraint"
        finally:
            del self.running[key]
        while len(self.known) >= MAX_KNOWN:
            self.known.pop(next(iter(self.known)))
        self.known[key] = result


def constraint_text(constraint: Constraint) -> str:
    """Return a constraint as JSON text; raises ValueError if it has too many choices or characters."""
    choices = constraint.get("choice")
    if isinstance(choices, list) and len(choices) > MAX_CHOICES:
        raise ValueError(f"structured_outputs has {len(choices)} choices; send at most {MAX_CHOICES}")
    text = json.dumps(constraint, ensure_ascii=False, sort_keys=True)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"structured_outputs has {len(text)} characters; send at most {MAX_CHARACTERS}")
    return text
