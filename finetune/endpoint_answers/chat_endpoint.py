"""Client of an OpenAI-compatible endpoint: one request to /chat/completions, repeated while the endpoint is busy."""

import json
import random
import threading
import urllib.error
import urllib.request
from email.message import Message
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from answer_generation.batched_generation import GeneratedAnswer

ATTEMPTS = 6
FIRST_PAUSE = 0.5  # seconds after the first failure, doubled after each further one, and up to a quarter longer
LONGEST_PAUSE = 60  # seconds; maximum Retry-After
BUSY_STATUSES = (408, 409, 425, 429)  # and all of 500 and above
MESSAGE_CHARACTERS = 200  # of the endpoint's error message that are shown
LONGEST_RESPONSE = 64 * 2**20  # bytes
ChatMessages = list[dict[str, str]]


class EndpointError(ConnectionError):
    """The endpoint does not answer, or refuses every request."""


class RefusedRowError(ValueError):
    """The endpoint refuses one request, such as a prompt that is too long."""


class Reply(NamedTuple):
    """A response; status 0: there was none, and `text` is the reason."""

    status: int
    text: str
    retry_after: str = ""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the key must not be sent to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


def completions_url(endpoint: str) -> str:
    """Return the URL of /chat/completions from a server's address, with or without /v1 or the whole path.

    Raises ValueError if it is not a URL.
    """
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if (
        parts.scheme not in ("http", "https")
        or not host
        or any(each.isspace() or not each.isascii() for each in endpoint)
    ):
        raise ValueError(
            f"--endpoint {endpoint!r} is not the URL of a server; give one such as http://127.0.0.1:8090/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("--endpoint takes no user name, password or query; put a key into KNOWLM_API_KEY")
    base = endpoint.rstrip("/").removesuffix("/chat/completions")
    return f"{base}/chat/completions" if urlsplit(base).path else f"{base}/v1/chat/completions"


class ChatEndpoint:
    """An endpoint and the settings of its requests."""

    def __init__(self, endpoint: str, key: str, model: str, max_tokens: int, timeout: float) -> None:
        """Check the URL and, without a model, ask for the first served one.

        timeout: seconds without a byte from the endpoint. Raises ValueError or EndpointError.
        """
        self.url = completions_url(endpoint)
        self.headers = {"Content-Type": "application/json", "User-Agent": "KnowLM"}
        self.headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self.max_tokens, self.timeout = max_tokens, timeout
        self.stopping = threading.Event()  # set: no further attempts
        self.opener = urllib.request.build_opener(NoRedirects)
        self.model = model or self.first_model()

    def first_model(self) -> str:
        """Return the name of the first model that the endpoint lists; raises EndpointError if it lists none."""
        url = f"{self.url.removesuffix('/chat/completions')}/models"
        reply = self.request_with_retries(url, None)
        try:
            return str(json.loads(reply.text)["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise EndpointError(f"{url} has no list of models (status {reply.status}); give --model") from None

    def answer(self, messages: ChatMessages, schema: dict[str, Any] | None = None) -> GeneratedAnswer:
        """Return the greedy answer to messages; schema: JSON schema of the answer, sent as vLLM's structured_outputs.

        Raises EndpointError if there is no answer after ATTEMPTS or the key is not accepted, RefusedRowError if the
        endpoint refuses the request.
        """
        body: dict[str, Any] = {
            "model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens,
        }  # fmt: skip
        body |= {"structured_outputs": {"json": schema}} if schema else {}
        reply = self.request_with_retries(self.url, json.dumps(body).encode())
        if reply.status != 200:
            raise RefusedRowError(f"the endpoint answered with status {reply.status}{error_text(reply.text)}")
        try:
            choice = json.loads(reply.text)["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise EndpointError(
                f"{self.url} does not answer like an OpenAI-compatible endpoint; check the URL"
            ) from None
        return GeneratedAnswer(text if isinstance(text, str) else "", reason if isinstance(reason, str) else "")

    def request_with_retries(self, url: str, data: bytes | None) -> Reply:
        """Send a request and repeat it while the endpoint is busy or fails; return a response of another status.

        Raises EndpointError after ATTEMPTS, or if the key is not accepted.
        """
        for attempt in range(ATTEMPTS):
            reply = self.request(url, data)
            if reply.status in (401, 403):
                raise EndpointError(f"{url} does not accept the key (status {reply.status}); set KNOWLM_API_KEY")
            if 300 <= reply.status < 400 or reply.status == 404:
                raise EndpointError(
                    f"{url} answered with status {reply.status}{error_text(reply.text)}; check --endpoint"
                )
            if 0 < reply.status < 500 and reply.status not in BUSY_STATUSES:
                return reply
            pause = FIRST_PAUSE * 2**attempt * random.uniform(1, 1.25)
            if reply.retry_after.isdecimal():
                pause = max(pause, min(int(reply.retry_after[:6]), LONGEST_PAUSE))
            if attempt + 1 < ATTEMPTS and self.stopping.wait(pause):
                break
        reason = f"status {reply.status}{error_text(reply.text)}" if reply.status else reply.text
        raise EndpointError(f"{url} does not answer ({reason}); start it or wait for it, or give another --endpoint")

    def request(self, url: str, data: bytes | None) -> Reply:
        """Send one request."""
        request = urllib.request.Request(url, data, self.headers)
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                return Reply(response.status, response.read(LONGEST_RESPONSE).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2**16).decode("utf-8", "replace")
                return Reply(error.code, text, error.headers.get("Retry-After") or "")
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            return Reply(0, " ".join(str(reason).split()) or type(error).__name__)


def error_text(body: str) -> str:
    """Return ": " and the message of an error response on one line, "" if it has none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = body
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    text = " ".join((found if isinstance(found, str) else json.dumps(found)).split()) if found else ""
    return f": {text[:MESSAGE_CHARACTERS]}" if text else ""
