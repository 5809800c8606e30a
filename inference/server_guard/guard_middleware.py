"""ASGI middleware in front of every route: API keys, body size, rate limits and graceful shutdown.

launch_vllm.py adds GuardMiddleware to `--middleware` as the outermost middleware of each API process; the middleware
reads its settings from the server's arguments. vLLM's own key check covers /v1 and a few other routes; the middleware's
check covers every route but GET and HEAD of /health. Refusals have the same CORS headers as vLLM's responses, so that a
page of an allowed origin can read them.
"""

import asyncio
import os
from argparse import Namespace
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm_bridge.request_cost import (
    count_beam_log_probabilities,
    counted_cost,
    limit_generation,
    limit_texts,
    max_request_sequences,
    record_sequences,
    tokens_used,
    warm_up,
)
from vllm_bridge.request_errors import check_streams, report_missing_template, report_unknown_models
from vllm_bridge.vllm_hooks import check_constraints, check_sequences, report_failed_validators
from vllm_bridge.vllm_imports import from_vllm

from server_guard.body_structure import UNCHECKED_BYTES, structure_error
from server_guard.error_responses import RefusedError, route_path, send_refusal
from server_guard.graceful_shutdown import GracefulShutdown
from server_guard.log_privacy import install_log_filters
from server_guard.request_limits import RateLimits, client_name
from server_guard.uvicorn_hooks import install_uvicorn_hooks

MIB = 2**20
BUSY_SECONDS = 1  # Retry-After for vLLM's 429 and 503: its queue has room as soon as one request ends
RESTART_SECONDS = 30  # Retry-After during shutdown: the time that a restart takes
LINGER_SECONDS = 2.0  # longest time to read a refused body; some clients read a response only after sending the body
UNLIMITED_PATHS = ("/health", "/metrics")


class GuardMiddleware:
    """ASGI middleware that checks and limits the requests of all routes, and finishes them at shutdown."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.settings: GuardSettings | None = None
        self.max_sequences = 0  # maximum number of concurrent sequences of one request in the engine; set at startup
        self.shutdown = GracefulShutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.lifespan(scope, receive, send)
        if self.settings is None:
            self.settings = GuardSettings(scope["app"].state.args)
        request = GuardedRequest(scope, receive, send, self.settings)
        self.shutdown.running.add(request)
        try:
            if self.shutdown.draining:
                raise shutdown_refusal()
            await self.run_route(request, self.settings.check_request(scope))
        except RefusedError as refusal:
            request.refusal = refusal
        except asyncio.CancelledError:
            if not self.shutdown.aborted:
                raise
        except Exception:
            if not request.refusal:  # otherwise the route failed because its body was refused
                raise
        finally:
            self.shutdown.remove(request)
        if request.refusal:
            await request.send_refusal(request.refusal)
        return None

    async def run_route(self, request: "GuardedRequest", client_names: Sequence[str]) -> None:
        """Run the route; charge the tokens to the client names, even if the request fails or is cancelled."""
        with counted_cost(self.max_sequences) as cost:
            try:
                await self.app(request.scope, request.receive, request.send)
            finally:
                tokens = tokens_used(request.scope.get("state", {}), cost.sequences)
                request.settings.limits.charge(client_names, tokens)

    async def lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Install the guard at startup, after vLLM has filled in the application's state; report the shutdown."""
        state = scope["app"].state
        self.settings = GuardSettings(state.args)
        install_uvicorn_hooks(state.server)
        self.shutdown.install(state.server, state.args.shutdown_timeout)
        if not state.args.enable_log_requests:
            install_log_filters()
        report_failed_validators()
        report_missing_template()
        report_unknown_models(state.args.model)
        check_streams(state)
        count_beam_log_probabilities(state)
        check_constraints(state.engine_client)
        check_sequences(state.engine_client)
        limit_generation(state.engine_client)
        limit_texts()
        await warm_up(state.engine_client)
        self.max_sequences = max_request_sequences(state.engine_client.vllm_config.scheduler_config.max_num_seqs)
        if state.args.limit_tokens:
            record_sequences(state.engine_client)

        async def receive_event() -> Message:
            message = await receive()
            # Without draining, the shutdown has another cause: the engine failed, and requests are not answered.
            if message["type"] == "lifespan.shutdown" and self.shutdown.draining:
                self.shutdown.report_all_answered()
            return message

        await self.app(scope, receive_event, send)


class GuardSettings:
    """Keys, limits and CORS rules of one server, and the rate limit windows of its clients."""

    def __init__(self, args: Namespace) -> None:
        """args: the server's arguments. Raises the ValueErrors of api_keys and RateLimits."""
        keys = api_keys(args.api_key, os.environ.get("VLLM_API_KEY"))
        self.keys = from_vllm("AuthenticationMiddleware")(None, keys) if keys else None
        self.max_body = args.max_body_mib * MIB
        self.limits = RateLimits(args.limit_requests, args.limit_tokens)
        self.cors = CORSMiddleware(
            send_refusal,
            allow_origins=args.allowed_origins,
            allow_credentials=args.allow_credentials,
            expose_headers=["Retry-After", "WWW-Authenticate"],
        )

    def check_request(self, scope: Scope) -> Sequence[str]:
        """Return the names (key, address) to which the request's tokens are charged; empty if no rate limit applies.

        Raises RefusedError if the request is not admitted.
        """
        headers = Headers(scope=scope)
        client_names: tuple[str, ...] = ()
        if self.keys and not is_public(scope):
            if not self.keys.verify_token(headers):
                self.check_limits([client_name(scope["client"])])  # limits attempts to guess a key
                message = "no valid key; send one in the header Authorization: Bearer KEY"
                raise RefusedError(HTTPStatus.UNAUTHORIZED, message)
            client_names = (headers["authorization"].partition(" ")[2],)
        if int(headers.get("content-length", 0)) > self.max_body:
            raise self.body_too_long_error()
        if not self.limits.any or route_path(scope) in UNLIMITED_PATHS or is_preflight(scope):
            return ()
        client_names = (*client_names, client_name(scope["client"]))
        self.check_limits(client_names)
        return client_names

    def check_limits(self, client_names: Sequence[str]) -> None:
        """Count a request for each of the client's names; raises RefusedError if a limit is used up."""
        wait, limit = self.limits.count_request(client_names)
        if wait:
            message = f"the limit of {limit} is used up; try again in {wait} s"
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, message, wait)

    def body_too_long_error(self) -> RefusedError:
        """Return the refusal of a body that is longer than --max-body-mib."""
        message = f"the body is longer than the {self.max_body // MIB} MiB of --max-body-mib; send less at once"
        return RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, close=True)


class GuardedRequest:
    """One request: limits the bytes of its body, adds Retry-After to its response, and can be refused or aborted."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: GuardSettings) -> None:
        self.scope, self.app_receive, self.app_send, self.settings = scope, receive, send, settings
        self.task = asyncio.current_task()
        self.remaining = settings.max_body  # bytes
        self.is_json = not Headers(scope=scope).get("content-type", "").startswith("multipart/")
        self.responded = False  # whether the response has begun
        self.refusal: RefusedError | None = None  # once it is set, the route's messages are dropped

    async def receive(self) -> Message:
        """Return the next event; a request's body is returned as one event, after its length and structure are checked.

        Raises RefusedError for a body that exceeds a limit.
        """
        parts = []
        while True:
            message = await self.app_receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            self.remaining -= len(parts[-1])
            if self.remaining < 0:
                self.refusal = self.settings.body_too_long_error()
                raise self.refusal
            if not message.get("more_body"):
                break
        body = b"".join(parts)
        if self.is_json and len(body) > UNCHECKED_BYTES and (error := await asyncio.to_thread(structure_error, body)):
            self.refusal = RefusedError(HTTPStatus.BAD_REQUEST, error)
            raise self.refusal
        return {"type": "http.request", "body": body, "more_body": False}

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the route, unless the request was refused; responses with 429 or 503 get a Retry-After."""
        if self.refusal:
            return drop_message()
        if message["type"] in ("http.response.start", "websocket.accept"):
            self.responded = True
            if message.get("status") in (429, 503):
                message.setdefault("headers", [])
                MutableHeaders(scope=message).setdefault("retry-after", str(BUSY_SECONDS))
        return self.app_send(message)

    async def send_refusal(self, refusal: RefusedError) -> None:
        """Respond with the refusal, unless a response has begun."""
        if not self.responded:
            self.refusal, self.responded = refusal, True
            refusal.close |= self.expects_continue()
            await self.settings.cors({**self.scope, "refusal": refusal}, self.drain_body, self.app_send)

    async def drain_body(self) -> Message:
        """Read and drop the rest of the body for at most LINGER_SECONDS; return the event http.disconnect.

        A client whose connection is closed while it sends the body would not read the response.
        """
        if not self.expects_continue():
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while (await self.app_receive()).get("more_body"):
                        pass
        return {"type": "http.disconnect"}

    def expects_continue(self) -> bool:
        """Return whether the client waits for `100 Continue` before it sends its body."""
        return self.remaining == self.settings.max_body and "expect" in Headers(scope=self.scope)

    def abort(self) -> None:
        """Abort the request: cancel a response that has begun, else respond with status 503."""
        if self.responded and self.task:
            self.task.cancel()
        else:
            self.refusal_task = asyncio.ensure_future(self.send_refusal(shutdown_refusal()))


def shutdown_refusal() -> RefusedError:
    """Return the refusal of a request that arrives during shutdown, or that the shutdown aborts."""
    message = f"the server is shutting down; try again in {RESTART_SECONDS} s"
    return RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, message, RESTART_SECONDS)


async def drop_message() -> None:
    """Do nothing; awaited instead of sending a message of a route whose request was refused."""


def is_public(scope: Scope) -> bool:
    """Return whether a request needs no key: GET and HEAD of /health, and CORS preflight requests."""
    if scope["type"] != "http":
        return False
    return (scope["method"] in ("GET", "HEAD") and route_path(scope) == "/health") or is_preflight(scope)


def is_preflight(scope: Scope) -> bool:
    """Return whether a request is a CORS preflight, which vLLM's CORS middleware answers for every path."""
    headers = Headers(scope=scope)
    return scope.get("method") == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def api_keys(given: Sequence[str] | None, from_environment: str | None) -> list[str]:
    """Return the server's keys: --api-key, else VLLM_API_KEY, else [] (no key is required).

    Raises ValueError for a key that cannot be sent in a header, and for an empty key, which vLLM would treat as no key.
    """
    source = "--api-key" if given else "VLLM_API_KEY"
    keys = list(given or ([] if from_environment is None else [from_environment]))
    for key in keys:
        if not key:
            raise ValueError(f"{source} is empty; give a key, or remove it")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"the key of {source} has spaces or characters that are not ASCII; choose one without")
    return keys
