"""How a server ends: what runs is finished, what comes is told to come back, then the process goes.

vLLM's own end begins with the engine, which finishes the sequences that it has and takes no new ones. But one request
can need many sequences, one after the other (each step of a beam search is new ones), and what is refused meanwhile
should learn so over an open connection. So the engine is left alone, and the server's loop is told to leave once the
last answer is out; vLLM's own way down from there finds an idle engine.
"""

import asyncio
import logging
import multiprocessing
import signal
from typing import Any, Protocol

from server_guard.process_supervisor import LEAVING, SERVING, report

FORCED_AFTER = 1.0  # seconds
BEFORE_PARENT = 2.0  # seconds; one of several API processes is killed by its parent when the time is up

logger = logging.getLogger("uvicorn.error")


class Request(Protocol):
    """What the end knows of a request."""

    def give_up(self) -> None: ...


class ServerEnd:
    """The end of one API process: `draining` once it has begun, `aborted` once its time is up."""

    def __init__(self) -> None:
        self.running: set[Request] = set()
        self.draining = self.aborted = self.left = False
        self.seconds = 0.0
        self.server: Any = None

    def install(self, server: Any, seconds: float) -> None:
        """Take over SIGTERM and SIGINT from vLLM. Called in the server's loop once vLLM has installed its own handlers.

        server: uvicorn's; seconds: for what runs.
        """
        self.server = server
        self.seconds = seconds if multiprocessing.parent_process() is None else max(0.0, seconds - BEFORE_PARENT)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.start)
        report(SERVING)

    def start(self) -> None:
        """Begin the end; a signal that comes again says nothing new here, see process_supervisor.py."""
        if not self.draining:
            self.draining = True
            logger.info("Ending: %d requests are finished first, in %g s at most", len(self.running), self.seconds)
            asyncio.get_running_loop().call_later(self.seconds, self.abort)
            self.leave_if_idle()

    def begin(self, request: Request) -> None:
        self.running.add(request)

    def finish(self, request: Request) -> None:
        self.running.discard(request)
        if self.draining:
            self.leave_if_idle()

    def leave_if_idle(self) -> None:
        if not self.running:
            self.server.should_exit = True

    def abort(self) -> None:
        """Give up what still runs; soon after, do not even wait for peers that are slow to read."""
        self.aborted = True
        for request in list(self.running):
            request.give_up()
        asyncio.get_running_loop().call_later(FORCED_AFTER, self.force)

    def force(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.leave()

    def leave(self) -> None:
        """Called when all answers are out and all connections closed, or given up."""
        if not self.left:
            self.left = True
            report(LEAVING)
