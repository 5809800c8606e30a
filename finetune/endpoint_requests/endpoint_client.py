"""Client of an OpenAI-compatible server: rounds of requests with bounded concurrency and one retry policy.

| response | what happens |
| --- | --- |
| no connection, timeout, status 408, 409, 425, 5xx except 503 | up to `attempts` attempts, with doubled pauses |
| status 200 without a completion (HTML, not JSON) | the same |
| status 429 or 503 | all requests wait, for Retry-After seconds if the server names them |
| status 401, 403, 404, or a redirect | the run ends: key, address or model is wrong; redirects are not followed |
| another 4xx status, or more than MAX_BODY bytes | the request has failed |

After the last attempt, the run ends if the server cannot be reached; otherwise the request has failed. Failed requests
are recorded too, so that a resumed run has the same result; after FAILURES_IN_A_ROW of them, the run ends. A caller may
end the run at the first one (`on_failure`); such a failure is not recorded.
"""

from command_line import interrupts

import asyncio
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from endpoint_requests.request_journal import Completion, RequestJournal, request_key
from endpoint_requests.request_totals import RequestTotals

CONNECT_SECONDS = 10
FIRST_PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
LONGEST_PAUSE = 600  # seconds; maximum Retry-After; with `timeout`, maximum time without an answer of a busy server
MAX_BODY = 16 * 2**20  # bytes of a response; longer than any completion
FAILURES_IN_A_ROW = 20
BUSY_STATUSES, TEMPORARY = (429, 503), (408, 409, 425)
REFUSALS = (*range(300, 400), 401, 403, 404)
SHOWN_CHARACTERS = 200  # of a response in an error message


class EndpointOptions(NamedTuple):
    """The server and the settings of requests.

    Attributes:
        url: the server's address, with or without /v1.
        model: the model's name in each request, "" for the first model that the server lists.
        key: API key, "" for none.
        api: "chat" (/v1/chat/completions) or "completions" (/v1/completions, for models without a chat template).
        timeout: seconds for one attempt.
        extra: further fields of each request; a field with None is removed from the request.
    """

    url: str
    model: str
    key: str = ""
    api: str = "chat"
    concurrency: int = 16
    attempts: int = 6
    timeout: float = 600.0
    extra: Mapping[str, Any] = {}

    @property
    def route(self) -> str:
        return "/chat/completions" if self.api == "chat" else "/completions"


def base_url(url: str) -> str:
    """Return the base URL of a server's API: its address with /v1, unless the address has another path.

    Raises ValueError if it is not a URL.
    """
    try:
        parts = urlsplit(url.rstrip("/"))
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server or not url.isascii() or any(map(str.isspace, url)):
        raise ValueError(f"--url {url!r} is not the URL of a server; give one such as http://127.0.0.1:8090")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("--url takes no user name, password or query; put a key into OPENAI_API_KEY")
    path = parts.path
    for route in ("/chat/completions", "/completions"):
        path = path.removesuffix(route)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


class EndpointClient:
    """Sends rounds of requests. A context manager; the connections stay open between rounds."""

    def __init__(self, options: EndpointOptions, journal: RequestJournal, totals: RequestTotals) -> None:
        self.options, self.journal, self.totals = options, journal, totals
        self.base_url = base_url(options.url)
        self.counted: set[str] = set()  # keys of the requests in `totals`
        self.failures = 0  # failed requests since the last answer
        self.resume_at = 0.0  # monotonic seconds; a busy server gets no request before this time
        self.last_answer = time.monotonic()
        self.runner = asyncio.Runner()
        self.session: aiohttp.ClientSession

    def __enter__(self) -> "EndpointClient":
        # asyncio cancels all requests on Ctrl-C only with Python's default handler.
        # A process that ignores signals, such as the worker of an executor, continues to ignore them.
        own: dict[signal.Signals, Any] = {
            signal.SIGINT: signal.default_int_handler, signal.SIGTERM: interrupt_on_sigterm,
        }  # fmt: skip
        found = {number: signal.getsignal(number) for number in own}
        self.handlers = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
        for number in self.handlers:
            signal.signal(number, own[number])
        try:
            self.runner.run(self._open())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.runner.run(self.session.close())
        self.runner.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    async def _open(self) -> None:
        headers = {"Authorization": f"Bearer {self.options.key}"} if self.options.key else {}
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)
        if not self.options.model:
            self.options = self.options._replace(model=await self._first_model())

    async def _first_model(self) -> str:
        """Return the name of the first model that the server lists; raises ConnectionError if it lists none."""
        found = await self._request("/models", None, first_model)
        if found.error:
            raise ConnectionError(f"{self.base_url}/models has no list of models ({found.error}); give --model")
        return found.text

    def request(
        self, messages: Sequence[Mapping[str, str]] | str, seed: int | None, temperature: float, max_tokens: int
    ) -> dict[str, Any]:  # fmt: skip
        """Return the body of a request. A text is one user message; for /completions, blank lines join the contents."""
        body: dict[str, Any] = {"model": self.options.model}
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else [*map(dict, messages)]
        if self.options.api == "chat":
            body["messages"] = turns
        else:
            body["prompt"] = "\n\n".join(turn["content"] for turn in turns) + "\n"
        body |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, **self.options.extra}
        return {name: value for name, value in body.items() if value is not None}

    def complete(
        self, requests: Sequence[Mapping[str, Any]], description: str = "requests",
        on_failure: Callable[[str, str], None] | None = None,
    ) -> list[Completion]:  # fmt: skip
        """Return the answer to each request, in the order of the requests; equal requests are sent once.

        on_failure: called with the key of a request that has failed (request_journal.request_key) and with the reason,
        before the failure is recorded; its exceptions end the run. Raises ConnectionError if the server refuses key,
        address or model, or does not answer.
        """
        keys = [request_key(self.options.route, body) for body in requests]
        missing = {
            key: body for key, body in zip(keys, requests, strict=True) if key not in self.journal.completions
        }  # fmt: skip
        if missing:
            self.runner.run(self._answer(missing, description, on_failure))
        answers = [self.journal.completions[key] for key in keys]
        for key, answer in zip(keys, answers, strict=True):
            if key not in self.counted:
                self.counted.add(key)
                self.totals.add(answer)
        return answers

    async def _answer(
        self, missing: Mapping[str, Mapping[str, Any]], description: str,
        on_failure: Callable[[str, str], None] | None,
    ) -> None:  # fmt: skip
        from tqdm import tqdm

        pending = iter(missing.items())
        bar = tqdm(total=len(missing), desc=description, unit="request", disable=None, leave=False)
        self.last_answer = time.monotonic()

        async def work() -> None:
            for key, body in pending:
                completion = await self._request(self.options.route, json.dumps(body).encode(), parsed_completion)
                if completion.error and on_failure:
                    on_failure(key, completion.error)
                self.journal.record(key, completion)
                self.totals.asked += 1
                bar.update()
                self._check_failures(completion)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.options.concurrency, len(missing))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:  # the first error cancels the other workers; only this error is raised
            raise errors.exceptions[0] from None
        finally:
            bar.close()

    def _check_failures(self, completion: Completion) -> None:
        self.failures = self.failures + 1 if completion.error else 0
        if self.failures >= FAILURES_IN_A_ROW:
            self.failures = 0
            raise ConnectionError(
                f"{self.base_url}: {FAILURES_IN_A_ROW} requests in a row failed ({completion.error}); correct the "
                "cause and run the same command with --retry_failed"
            )

    async def _request(
        self, route: str, data: bytes | None, parse: Callable[[bytes], Completion | None]
    ) -> Completion:  # fmt: skip
        """Send a request until it is answered or has failed (see the table at the top of this file).

        data: the body, None for GET. parse: returns the answer in a response, or None if it has none.
        """
        failures = 0
        while True:
            await asyncio.sleep(self.resume_at - time.monotonic())
            status, content, retry_after = await self._send(route, data)
            if status in REFUSALS:
                raise ConnectionError(
                    f"{self.base_url}{route} answers with status {status} ({error_text(content)}); "
                    "correct --url or --model, or give a valid key in OPENAI_API_KEY"
                )
            if status in BUSY_STATUSES:
                self.totals.retries += 1
                self._wait_for_busy_server(retry_after)
                continue
            if status == 200:
                self.last_answer = time.monotonic()
                if (completion := parse(content)) is not None:
                    return completion
            reason = content.decode() if status <= 0 else f"status {status}: {error_text(content)}"
            if len(content) > MAX_BODY:
                return failed(f"the response has more than {MAX_BODY} bytes")
            if 400 <= status < 500 and status not in TEMPORARY:
                return failed(reason)
            failures += 1
            if failures >= self.options.attempts:
                if status == 0:
                    raise ConnectionError(
                        f"{self.base_url} does not answer ({reason}); start the server or correct --url"
                    )
                return failed(reason)
            self.totals.retries += 1
            await asyncio.sleep(FIRST_PAUSE * 2 ** (failures - 1))

    async def _send(self, route: str, data: bytes | None) -> tuple[int, bytes, str]:
        """Send a request once; return (status, response body, Retry-After).

        Without a response, the status is 0 (no connection) or -1 (timeout, or the connection broke within a response),
        and the body is the reason. At most MAX_BODY + 1 bytes are read.
        """
        timeout = aiohttp.ClientTimeout(total=self.options.timeout, sock_connect=CONNECT_SECONDS)
        headers, status = {"Content-Type": "application/json"}, 0
        try:
            async with self.session.request(
                "GET" if data is None else "POST", self.base_url + route, data=data, headers=headers, timeout=timeout,
                allow_redirects=False,  # the key must not reach another host
            ) as response:  # fmt: skip
                status = -1
                content = bytearray()
                async for part in response.content.iter_any():
                    content += part
                    if len(content) > MAX_BODY:
                        response.close()
                        break
                return response.status, bytes(content[: MAX_BODY + 1]), response.headers.get("Retry-After", "")
        except aiohttp.ConnectionTimeoutError:
            return 0, f"no connection within {CONNECT_SECONDS} s".encode(), ""
        except TimeoutError:
            return -1, f"no response within {self.options.timeout:g} s".encode(), ""
        except (aiohttp.ClientError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return status, reason[:SHOWN_CHARACTERS].encode(errors="replace"), ""

    def _wait_for_busy_server(self, retry_after: str) -> None:
        """Delay all requests; raises ConnectionError if this takes too long (LONGEST_PAUSE)."""
        seconds = max(1, int(retry_after[:9])) if retry_after.isdecimal() else 1
        now = time.monotonic()
        if seconds > LONGEST_PAUSE or now - self.last_answer > LONGEST_PAUSE + self.options.timeout:
            raise ConnectionError(f"{self.base_url} is busy; wait, and run the same command again to resume")
        self.resume_at = max(self.resume_at, now + seconds)


def interrupt_on_sigterm(number: int, *_: object) -> None:
    """Interrupt the run as Ctrl-C does, but with SIGTERM's exit status; a signal handler."""
    signal.signal(number, signal.SIG_IGN)
    interrupts.exit_status = interrupts.TERMINATED
    signal.raise_signal(signal.SIGINT)


def failed(reason: str) -> Completion:
    """Return the completion of a request that has failed."""
    return Completion("", "", None, None, reason[: 2 * SHOWN_CHARACTERS])


def parsed_completion(content: bytes) -> Completion | None:
    """Return the first choice of a response of /chat/completions or /completions, or None if it has none.

    A choice without text, such as {"content": null}, is an empty answer.
    """
    try:
        response = json.loads(content)
        choice = response["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        usage = response.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    if not isinstance(text, str | None):
        return None
    prompt_tokens, completion_tokens = (count if type(count) is int and count >= 0 else None for count in counts)
    valid = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair is not a character
    return Completion(valid, str(choice.get("finish_reason") or "stop"), prompt_tokens, completion_tokens)


def first_model(content: bytes) -> Completion | None:
    """Return the name of the first model in a response of /models, as a completion, or None if it lists none."""
    with suppress(ValueError, KeyError, IndexError, TypeError, RecursionError):
        name = json.loads(content)["data"][0]["id"]
        return Completion(name, "stop", None, None) if isinstance(name, str) and name else None
    return None


def error_text(content: bytes) -> str:
    """Return the message of an error response, or the beginning of the response, on one line."""
    text = content[: 64 * SHOWN_CHARACTERS].decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]
                text = str(found)
    return " ".join(text.split())[:SHOWN_CHARACTERS] or "empty response"
