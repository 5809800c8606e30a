"""A running server, asked by a fixed number of callers at once over connections that stay open.

batch.py answers with it. A busy server is waited for as it asks to be; one that is gone is tried a few
times more and then ends the run, which can go on later.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from batch_runs.batch_rows import ANSWERED, Answer, Request, Row, Take, Wait

TRIES = 6  # of a row where the server is gone or fails, with pauses of FIRST_PAUSE, twice that, … between: 15 s
FIRST_PAUSE = 0.5  # seconds
LONGEST_WAIT = 600  # seconds that a busy server is waited for, at once or without one answer in between
CONNECT_SECONDS = 10
ANSWER_SECONDS = 3600  # without a byte from the server; longer than any answer should take
BUSY = (429, 503)
NOT_LET_IN = (401, 403)


class ServerGoneError(ConnectionError):
    """There is no use in asking on."""


class Client:
    """A server of launch_vllm.py and how to talk to it. As an asynchronous context, it holds the connections."""

    def __init__(self, url: str, key: str, callers: int) -> None:
        """url: where the server is; key: sent in the header Authorization, if given; callers: how many ask at once.

        Raises ValueError on a URL that is none.
        """
        parts = urlsplit(url.rstrip("/").removesuffix("/generate"))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--url {parts.geturl()} is no URL of a server; give one such as http://127.0.0.1:8090")
        if parts.username or parts.password or parts.query:
            raise ValueError("--url takes no name, password or query; a key goes into KNOWLM_API_KEY")
        self.url = urlunsplit(parts)
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.callers = callers
        self.open_again = 0.0  # when a busy server asked to be asked again; monotonic seconds, as the next
        self.heard = time.monotonic()  # when it last gave an answer
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> "Client":
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.callers),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS),
            headers=self.headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    async def models(self) -> tuple[list[str], list[str]]:
        """Names of the base that is served, and of its adapters; raises ValueError where no vLLM server answers."""
        status, body = await self.patiently("GET", "/v1/models", None)
        try:
            cards = json.loads(body)["data"]
            bases = [card["id"] for card in cards if not card.get("parent")]
            return bases, [card["id"] for card in cards if card.get("parent")]
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f"{self.url}/v1/models answers with status {status} and no list of models"
            raise ValueError(f"{message}; start a server with inference/launch_vllm.py and give its URL") from None

    async def ask(self, body: dict[str, Any]) -> Answer:
        """The answer to a body of /generate; an error of the request's own is in it."""
        status, content = await self.patiently("POST", "/generate", json.dumps(body).encode())
        try:
            text, tokens, error = (json.loads(content)[name] for name in ANSWERED)
        except (ValueError, KeyError, TypeError):
            if status < 400:
                raise ValueError(f"{self.url}/generate does not answer as launch_vllm.py's servers do") from None
            text, tokens, error = "", 0, f"the server answered with status {status}"
        self.heard = time.monotonic()
        return Answer(text, tokens, error)

    async def patiently(self, method: str, path: str, data: bytes | None) -> tuple[int, bytes]:
        """Status and body of an answer other than "busy" and "not let in".

        Raises ServerGoneError where there is none to be had, ValueError where the key is not taken.
        """
        failures = 0
        while True:
            await asyncio.sleep(self.open_again - time.monotonic())
            try:
                async with self.session.request(method, self.url + path, data=data, allow_redirects=False) as response:
                    status, content = response.status, await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                status, content, why = 0, b"", " ".join(str(error).split()) or type(error).__name__
            if status in NOT_LET_IN:
                raise ValueError(f"{self.url} does not take the key (status {status}); give it in KNOWLM_API_KEY")
            if status in BUSY:
                self.wait(response.headers.get("Retry-After", ""))
                continue
            if 0 < status < 500:
                return status, content
            failures += 1
            if failures == TRIES and status == 500:  # it lives, so it may be this request that it fails at
                return status, content
            if failures == TRIES:
                why = f"status {status}" if status else why
                raise ServerGoneError(f"{self.url} does not answer ({why}); what is written stays")
            await asyncio.sleep(FIRST_PAUSE * 2 ** (failures - 1))

    def wait(self, asked: str) -> None:
        """Let all callers wait as long as Retry-After asks; raises ServerGoneError where that is too long."""
        seconds = max(1, int(asked)) if asked.isdecimal() else 1
        now = time.monotonic()
        if seconds > LONGEST_WAIT or now - self.heard > LONGEST_WAIT:
            raise ServerGoneError(f"{self.url} is busy and asks to come again in {seconds} s; what is written stays")
        self.open_again = max(self.open_again, now + seconds)

    async def answer(self, rows: Iterator[Row], request: Request, take: Take, wait: Wait) -> None:
        """Answer all rows; raises as `patiently` does."""
        self.heard = time.monotonic()

        async def caller() -> None:
            for row in rows:
                if row.content is None:
                    take(row, Answer(error=row.error or None))
                    continue
                take(row, await self.ask(request(row.content)))
                while wait():
                    await asyncio.sleep(FIRST_PAUSE)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.callers):
                    group.create_task(caller())
        except BaseExceptionGroup as several:  # what ended one of them ends all, and is told once
            raise several.exceptions[0] from None
