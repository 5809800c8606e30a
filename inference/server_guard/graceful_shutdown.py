"""Graceful shutdown: running requests are finished, new ones get status 503, then the process exits.

vLLM's own shutdown stops the engine first; the engine then finishes its sequences and accepts no new ones. But a
request can start sequences one after the other (each step of a beam search starts new ones), and requests that arrive
during the shutdown need a response. So the engine keeps running, and the HTTP server exits after the last response;
vLLM's shutdown then finds an idle engine.
"""

import asyncio
import logging
import multiprocessing
import signal
from typing import Any

from server_guard.process_supervisor import ALL_ANSWERED, SERVING, notify_supervisor

FORCE_EXIT_SECONDS = 1.0  # after the abort
# The parent of several API processes kills them after the timeout; they abort requests this many seconds earlier.
PARENT_MARGIN_SECONDS = 2.0

logger = logging.getLogger("uvicorn.error")


class GracefulShutdown:
    """The shutdown of one API process. `draining` is set when it begins, `aborted` after the timeout."""

    def __init__(self) -> None:
        self.running: set[Any] = set()  # GuardedRequests
        self.draining = self.aborted = self.has_reported = False
        self.timeout = 0.0  # seconds
        self.server: Any = None

    def install(self, server: Any, timeout: float) -> None:
        """Replace vLLM's handlers of SIGTERM and SIGINT, and tell the supervisor that this process serves.

        Must be called in the server's event loop, after vLLM has set its handlers. server: a uvicorn.Server; timeout:
        seconds for running requests.
        """
        self.server = server
        is_child = multiprocessing.parent_process() is not None
        self.timeout = max(0.0, timeout - PARENT_MARGIN_SECONDS) if is_child else timeout
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.start)
        notify_supervisor(SERVING)

    def start(self) -> None:
        """Begin the shutdown. Further signals are ignored here; process_supervisor.py acts on the second one."""
        if not self.draining:
            self.draining = True
            logger.info("Shutting down: %d requests are running; timeout %g s", len(self.running), self.timeout)
            asyncio.get_running_loop().call_later(self.timeout, self.abort)
            self.exit_if_idle()

    def remove(self, request: Any) -> None:
        self.running.discard(request)
        self.exit_if_idle()

    def exit_if_idle(self) -> None:
        if self.draining and not self.running:
            self.server.should_exit = True

    def abort(self) -> None:
        """Abort the running requests; FORCE_EXIT_SECONDS later, exit without waiting for clients that read slowly."""
        self.aborted = True
        for request in list(self.running):
            request.abort()
        asyncio.get_running_loop().call_later(FORCE_EXIT_SECONDS, self.force_exit)

    def force_exit(self) -> None:
        """End the server without waiting for its connections."""
        self.server.should_exit = self.server.force_exit = True
        self.report_all_answered()

    def report_all_answered(self) -> None:
        """Tell the supervisor that this process has answered its last request.

        The supervisor counts these reports, so each process sends only one.
        """
        if not self.has_reported:
            self.has_reported = True
            notify_supervisor(ALL_ANSWERED)
