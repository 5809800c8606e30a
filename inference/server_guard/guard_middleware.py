"""What stands before every route of the server: keys, the size of a body, limits, and the end of the process.

vLLM puts Guard outermost (`--middleware guard.Guard`, which launch_vllm.py presets) in each of its API processes; its
settings are the server's arguments. vLLM's own key guards /v1 and a few more; this one guards whatever is served, a
route that nobody thought of included. What is refused passes through CORS rules like vLLM's, which lie further inside,
so that a page of an allowed origin can read why.
"""

import asyncio
import hashlib
import os
import secrets
from argparse import Namespace
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from server_guard.bounded_http import bound_heads
from server_guard.error_responses import App, Message, Receive, RefusedError, Scope, Send, answer_refusal, route_path
from server_guard.graceful_shutdown import ServerEnd
from server_guard.log_privacy import keep_requests_private
from server_guard.request_limits import SEQUENCES, Limits, address, note_sequences, tokens_used

MIB = 2**20
BUSY_SECONDS = 1  # Retry-After where vLLM's queue is full: one answer that ends makes room
RESTART_SECONDS = 30  # Retry-After while the server ends: what a start takes
LINGER_SECONDS = 2.0  # how long a refused body is still taken in, for peers that read the answer once all is sent
UNCOUNTED = ("/health", "/metrics")


class Guard:
    """Pure ASGI middleware."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.settings: Settings | None = None
        self.end = ServerEnd()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.live(scope, receive, send)
        if self.settings is None:
            self.settings = Settings(scope["app"].state.args)
        passage = Passage(scope, receive, send, self.settings)
        self.end.begin(passage)
        try:
            if self.end.draining:
                raise ending()
            callers = self.settings.admit(scope)
            if callers:
                await self.charged(passage, callers)
            else:
                await self.app(scope, passage.receive, passage.send)
        except RefusedError as refusal:
            passage.refusal = refusal
        except asyncio.CancelledError:
            if not self.end.aborted:
                raise
        except Exception:
            if not passage.refusal:  # else it is what a route makes of the refusal of its body
                raise
        finally:
            self.end.finish(passage)
        if passage.refusal:
            await passage.refuse(passage.refusal)
        return None

    async def charged(self, passage: "Passage", callers: Sequence[str]) -> None:
        """Let a request through, and count what it used however it ends."""
        limits = passage.settings.limits
        assert limits
        sequences: list[Any] = []
        before = SEQUENCES.set(sequences)
        try:
            await self.app(passage.scope, passage.receive, passage.send)
        finally:
            SEQUENCES.reset(before)
            limits.charge(callers, tokens_used(passage.scope.get("state", {}), sequences))

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the server's start and end on; at the start, when its engine and its signals stand, take our place."""

        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self.open(scope["app"].state)
                except Exception as error:  # without this, uvicorn would serve all the same
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
            else:
                self.end.leave()
            return message

        await self.app(scope, received, send)

    def open(self, state: Any) -> None:
        self.settings = Settings(state.args)
        self.end.install(state.server, state.args.shutdown_timeout)
        bound_heads(state.server)
        if not state.args.enable_log_requests:
            keep_requests_private()
        if self.settings.limits and self.settings.limits.tokens:
            note_sequences(state.engine_client.output_processor)


class Settings:
    """What one server was told about safety, and its callers' windows."""

    def __init__(self, args: Namespace) -> None:
        """args: the server's arguments. Raises ValueError as api_keys and Limits do."""
        keys = api_keys(args.api_key, os.environ.get("VLLM_API_KEY"))
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.max_body = args.max_body_mib * MIB
        limited = args.limit_requests or args.limit_tokens
        self.limits = Limits(args.limit_requests, args.limit_tokens) if limited else None
        self.cors = CORSMiddleware(
            answer_refusal,
            allow_origins=args.allowed_origins,
            allow_credentials=args.allow_credentials,
            expose_headers=["Retry-After", "WWW-Authenticate"],
        )

    def admit(self, scope: Scope) -> Sequence[str]:
        """The names under which the request's tokens are to be counted; none where there are no limits.

        Raises RefusedError where the request is not let in.
        """
        authorization, length = b"", 0
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = authorization or value
            elif name == b"content-length":
                length = int(value)
        callers: tuple[str, ...] = ()
        if self.digests and not is_open(scope):
            key = self.key(authorization)
            if key is None:
                if self.limits:  # keys are not to be tried without end
                    self.count([address(scope["client"])])
                message = "no valid key; send one in the header Authorization: Bearer KEY"
                raise RefusedError(HTTPStatus.UNAUTHORIZED, message)
            callers = (key,)
        if length > self.max_body:
            raise self.too_long()
        if not self.limits or route_path(scope) in UNCOUNTED or is_preflight(scope):
            return ()
        callers = (*callers, address(scope["client"]))
        self.count(callers)
        return callers

    def key(self, authorization: bytes) -> str | None:
        """The name of the key in a header; None: it holds none of this server's."""
        scheme, _, token = authorization.partition(b" ")
        digest = hashlib.sha256(token).digest()
        found = None
        for number, known in enumerate(self.digests):  # all of them, so that the time says nothing
            if secrets.compare_digest(digest, known):
                found = f"key {number}"
        return found if scheme.lower() == b"bearer" else None

    def count(self, callers: Sequence[str]) -> None:
        assert self.limits
        wait, used_up = self.limits.arrive(callers)
        if wait:
            message = f"the limit of {used_up} is used up; try again in {wait} s"
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, message, wait)

    def too_long(self) -> RefusedError:
        message = f"the body is longer than the {self.max_body // MIB} MiB of --max-body-mib; send less at once"
        return RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, close=True)


class Passage:
    """One request on its way through: its body is counted, and its answer looked at for Retry-After."""

    __slots__ = ("answered", "last_word", "pass_on", "refusal", "room", "scope", "settings", "take", "task")

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.scope, self.take, self.pass_on, self.settings = scope, receive, send, settings
        self.task = asyncio.current_task()
        self.room = settings.max_body  # bytes
        self.answered = False  # an answer has begun
        self.refusal: RefusedError | None = None  # from here on, nothing of the route's is let out

    async def receive(self) -> Message:
        message = await self.take()
        if message["type"] == "http.request":
            self.room -= len(message.get("body", b""))
            if self.room < 0:
                self.refusal = self.settings.too_long()
                raise self.refusal
        return message

    def send(self, message: Message) -> Awaitable[None]:
        if self.refusal:
            return nothing()
        if message["type"] in ("http.response.start", "websocket.accept"):
            self.answered = True
            if message.get("status") in (429, 503):
                headers = list(message.get("headers", ()))
                if not any(name.lower() == b"retry-after" for name, _ in headers):
                    message["headers"] = [*headers, (b"retry-after", b"%d" % BUSY_SECONDS)]
        return self.pass_on(message)

    async def refuse(self, refusal: RefusedError) -> None:
        """Answer with the refusal, unless an answer has begun."""
        if not self.answered:
            self.refusal, self.answered = refusal, True
            refusal.close |= self.awaits_word()
            await self.settings.cors({**self.scope, "refusal": refusal}, self.linger, self.pass_on)

    async def linger(self) -> Message:
        """Take in what still comes of a body for a while: a peer that is cut off while it sends reads no answer."""
        if not self.awaits_word():
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while (await self.take()).get("more_body"):
                        pass
        return {"type": "http.disconnect"}

    def awaits_word(self) -> bool:
        """Whether the peer was to send its body after `100 Continue` only, and has not been told."""
        return self.room == self.settings.max_body and any(name == b"expect" for name, _ in self.scope["headers"])

    def give_up(self) -> None:
        """End a request before its time: an answer that has begun breaks off, else it is refused and its route ends."""
        if self.answered and self.task:
            self.task.cancel()
        else:
            self.last_word = asyncio.ensure_future(self.refuse(ending()))


def ending() -> RefusedError:
    message = f"the server is about to end; try again in {RESTART_SECONDS} s"
    return RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, message, RESTART_SECONDS)


async def nothing() -> None:
    """What is awaited in place of an answer that is not let out."""


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key."""
    if scope["type"] != "http":
        return False
    return (scope["method"] in ("GET", "HEAD") and route_path(scope) == "/health") or is_preflight(scope)


def is_preflight(scope: Scope) -> bool:
    """Whether it is a browser's question about CORS, which vLLM's CORS rules answer for every path, and no route."""
    if scope.get("method") != "OPTIONS":
        return False
    names = [name for name, _ in scope["headers"]]
    return b"origin" in names and b"access-control-request-method" in names


def api_keys(given: Sequence[str] | None, from_environment: str | None) -> list[str]:
    """The keys that are asked for: those of --api-key, else that of VLLM_API_KEY; none: the server is open.

    Raises ValueError for what no header holds, an empty key first of all: vLLM would then ask for none.
    """
    source = "--api-key" if given else "VLLM_API_KEY"
    keys = list(given or ([] if from_environment is None else [from_environment]))
    for key in keys:
        if not key:
            raise ValueError(f"{source} is empty; give it a key, or leave it out")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"the key of {source} has spaces or characters that are not ASCII; choose one without")
    return keys
