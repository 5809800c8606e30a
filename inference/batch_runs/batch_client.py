"""Client of a running server: workers that each send one request at a time over a persistent connection."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from batch_runs.batch_file import BatchProgress
from batch_runs.batch_rows import NO_ANSWER, BatchRow, row_answer

CONNECT_SECONDS = 10
READ_SECONDS = 3600  # longest time without a byte from the server, for each LONG_BODY bytes of the request body
LONG_BODY = 2**12  # /extract takes longer for a longer text
ATTEMPTS = 6
FIRST_PAUSE = 0.5  # seconds after the first failure, doubled after each further one; 15.5 s in all
LONGEST_PAUSE = 600  # seconds; maximum Retry-After, and maximum time without an answer while the server is busy
BUSY_STATUSES = (429, 503)
REFUSAL_SECONDS = 60  # a busy server refuses a request within this time; it has admitted a request that is open longer
UNAUTHORIZED_STATUSES = (401, 403)


class BatchClient:
    """Client of a launch_vllm.py server."""

    def __init__(self, url: str, key: str, concurrency: int, socket_file: str | None = None) -> None:
        """Check the URL; raises ValueError if it is invalid.

        url: the server's address; key: API key for the header Authorization, "" for none; concurrency: maximum number
        of concurrent requests; socket_file: path of the Unix socket of a server without an address.
        """
        parts = urlsplit(url.rstrip("/").removesuffix("/generate").removesuffix("/extract"))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"--url {parts.geturl()} is not the URL of a server; give one such as http://127.0.0.1:8090"
            )
        if parts.username or parts.password or parts.query:
            raise ValueError("--url takes no user name, password or query; put a key into KNOWLM_API_KEY")
        self.url = urlunsplit(parts)
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.concurrency, self.socket_file = concurrency, socket_file
        self.resume_at = 0.0  # monotonic seconds; a busy server gets no request before this time
        self.last_answer = time.monotonic()
        self.sent: list[float] = []  # monotonic seconds at which the requests without a response were sent
        self.session: aiohttp.ClientSession

    def connect(self) -> aiohttp.ClientSession:
        """Return a session, a context manager that keeps the connections open."""
        path = self.socket_file
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path, limit=0) if path else aiohttp.TCPConnector(limit=0),
            headers=self.headers,
        )

    async def models(self) -> tuple[list[str], list[str]]:
        """Return (names of the served base, names of its adapters).

        Raises ValueError if the response is not vLLM's list of models, and the errors of request_with_retries.
        """
        try:
            async with self.connect() as self.session:
                status, body = await self.request_with_retries("GET", "/v1/models", None)
        except ConnectionError as error:
            raise ConnectionError(f"{error}; start the server or wait for it, or give another --url") from None
        try:
            cards = json.loads(body)["data"]
            bases = [card["id"] for card in cards if not card.get("parent")]
            return bases, [card["id"] for card in cards if card.get("parent")]
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f"{self.url}/v1/models answers with status {status} and without a list of models"
            raise ValueError(f"{message}; start a server with inference/launch_vllm.py and give its URL") from None

    async def request_answer(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request body to a route and return the answer; if the request fails, the answer has its error.

        Raises ValueError if a successful response does not have the route's format, and the errors of
        request_with_retries.
        """
        status, content = await self.request_with_retries("POST", route, json.dumps(body).encode())
        try:
            answer = row_answer(route, json.loads(content))
        except (ValueError, KeyError, TypeError):
            if status < 400:
                message = f"{self.url}{route} does not answer in the format of launch_vllm.py"
                raise ValueError(f"{message}; start a server with inference/launch_vllm.py and give its URL") from None
            answer = NO_ANSWER[route] | {"error": f"the server answered with status {status}"}
        self.last_answer = time.monotonic()
        return answer

    async def request_with_retries(self, method: str, path: str, data: bytes | None) -> tuple[int, bytes]:
        """Send a request, and repeat it while the server is busy or fails; return the response's status and body.

        After the last attempt, a response with status 500 is returned, too; any other failure, or a server that is busy
        for too long, raises ConnectionError. Raises ValueError if the key is not accepted.
        """
        failures, read_seconds = 0, READ_SECONDS * (1 + len(data or b"") // LONG_BODY)
        options: dict[str, Any] = {
            "data": data, "allow_redirects": False,
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=read_seconds),
        }  # fmt: skip
        while True:
            await asyncio.sleep(self.resume_at - time.monotonic())
            self.sent.append(began := time.monotonic())
            try:
                async with self.session.request(method, self.url + path, **options) as response:
                    status, content = response.status, await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                status, content, reason = 0, b"", " ".join(str(error).split()) or type(error).__name__
            finally:
                self.sent.remove(began)
            if status in UNAUTHORIZED_STATUSES:
                raise ValueError(
                    f"{self.url} does not accept the key (status {status}); give a valid key in KNOWLM_API_KEY"
                )
            if status in BUSY_STATUSES:
                self.wait_for_busy_server(response.headers.get("Retry-After", ""))
                continue
            if 0 < status < 500:
                return status, content
            failures += 1
            if failures == ATTEMPTS:
                if status == 500:  # the server runs; this request may be the cause
                    return status, content
                reason = f"status {status}" if status else reason
                raise ConnectionError(f"{self.url} does not answer ({reason})")
            await asyncio.sleep(FIRST_PAUSE * 2 ** (failures - 1))

    def wait_for_busy_server(self, retry_after: str) -> None:
        """Delay the requests of all workers by Retry-After seconds, but at least by 1 s, also if the header is missing.

        Raises ConnectionError if the delay exceeds LONGEST_PAUSE, or if there was no answer for LONGEST_PAUSE seconds
        and the server has admitted no request that is still open.
        """
        seconds = max(1, int(retry_after)) if retry_after.isdecimal() else 1
        now = time.monotonic()
        admitted_one = now - min(self.sent, default=now) > REFUSAL_SECONDS
        if now - self.last_answer > LONGEST_PAUSE and not admitted_one:
            raise ConnectionError(f"{self.url} has been busy for {LONGEST_PAUSE} s")
        if seconds > LONGEST_PAUSE:
            raise ConnectionError(f"{self.url} is busy for {seconds} s more")
        self.resume_at = max(self.resume_at, now + seconds)

    async def answer(self, rows: Iterator[BatchRow], progress: BatchProgress) -> None:
        """Answer all rows and write the answers; raises the errors of `request_answer` and of `AnswerFile.write`.

        The concurrent requests have at most `concurrency` sequences together.
        """
        sequence_places, acquiring = asyncio.Semaphore(self.concurrency), asyncio.Lock()

        async def work() -> None:
            for row in rows:
                if row.request is None:
                    progress.write(row, NO_ANSWER[row.route] | {"error": row.error or None})
                    continue
                sequences = min(row.sequences(), self.concurrency)
                async with acquiring:  # else two rows could each hold places that the other one waits for
                    for _ in range(sequences):
                        await sequence_places.acquire()
                progress.write(row, await self.request_answer(row.route, row.request))
                for _ in range(sequences):
                    sequence_places.release()
                while progress.file.is_full():
                    await asyncio.sleep(FIRST_PAUSE)

        try:
            async with self.connect() as self.session, asyncio.TaskGroup() as group:
                progress.start()
                self.last_answer = time.monotonic()
                for _ in range(self.concurrency):
                    group.create_task(work())
        except BaseExceptionGroup as errors:  # the first error cancels the other workers; only this error is raised
            raise errors.exceptions[0] from None
