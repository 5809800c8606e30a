"""Parse the JSON body of a request within limits (long bodies in a thread), and define types of fields."""

import json
from typing import Annotated, Any

from fastapi import HTTPException, Request
from pydantic import AfterValidator, Field

from routes.concurrency import run_in_thread_if_long

MAX_KEYS = 1024  # of one object; pydantic creates an error for each unknown key
MAX_MESSAGES = 2**14  # of a conversation
MAX_TEXTS = 1024  # in the list of one parameter


def check_surrogates(text: str) -> str:
    """Return a text; raises ValueError if it has half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair; send whole characters") from None
    return text


def check_json_texts(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object; raises ValueError if one of its texts or keys has half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text or key has half of a surrogate pair; send whole characters") from None
    return value


Text = Annotated[str, AfterValidator(check_surrogates)]
Texts = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_TEXTS)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
JsonObject = Annotated[dict[str, Any], AfterValidator(check_json_texts)]


class JsonRequest(Request):
    """A request whose body is parsed by parse_body, in a thread if it is long."""

    async def json(self) -> Any:
        """Return the parsed body; raises HTTPException (status 400) or json.JSONDecodeError."""
        if not hasattr(self, "parsed_body"):
            body = await self.body()
            self.parsed_body = await run_in_thread_if_long(len(body), parse_body, body)
        return self.parsed_body


def parse_body(body: bytes) -> Any:
    """Return the value of a JSON text.

    Raises json.JSONDecodeError for invalid JSON, and HTTPException (status 400) for a text that is not UTF-8, is nested
    too deeply, repeats a key, or has an object of more than MAX_KEYS keys, NaN or Infinity (which JSON does not have),
    or an integer of more digits than Python reads (4300).
    """
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=checked_object, parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"the body is not UTF-8 at byte {error.start}; send UTF-8") from None
    except RecursionError:
        raise HTTPException(400, "the body is nested too deeply; send a flatter one") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python's limit of digits
        raise HTTPException(400, "the body has a number with thousands of digits; shorten it") from None


def checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise HTTPException(400, f"an object of the body has {len(pairs)} keys; send at most {MAX_KEYS}")
    checked = dict(pairs)
    if len(checked) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise HTTPException(400, f"the body repeats the key {repeated!r:.60}; send it once")
    return checked


def refuse_constant(name: str) -> Any:
    raise HTTPException(400, f"the body has the number {name}, which JSON does not have; remove it")
