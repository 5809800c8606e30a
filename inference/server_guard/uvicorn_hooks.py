"""All private interfaces of uvicorn that this stage uses; tests/inference/test_uvicorn_hooks.py checks each of them.

- HttpToolsProtocol: `data_received`, `on_headers_complete`, `on_body`, `on_message_complete` are extended,
  `send_400_response` is called, and `Config.http_protocol_class` is set. The parser httptools has no limit on the bytes
  of a request's head or of a chunk's trailer, so even a client without a key could exhaust the memory. uvicorn's other
  parser, h11, has such a limit (vLLM's --h11-max-incomplete-event-size).
- Server: `should_exit` and `force_exit` are set. There is no other way to stop a running server from its event loop.
- Config.lifespan is set to "on".
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 2**16


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection that sent more than MAX_HEAD_BYTES without completing a head or a part of a body."""

    pending_bytes = 0

    def data_received(self, data: bytes) -> None:
        self.pending_bytes += len(data)
        super().data_received(data)
        if self.pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head or the trailer of the request has more than {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self.pending_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.pending_bytes = 0
        super().on_message_complete()


def install_uvicorn_hooks(server: Any) -> None:
    """Make a uvicorn.Server exit if its startup fails, and use BoundedHttpProtocol unless its parser is h11.

    Called at the lifespan's startup. By default, uvicorn treats an exception there as missing support for lifespan
    events, and would serve without the guard or the routes.
    """
    server.config.lifespan = "on"
    if server.config.http_protocol_class is HttpToolsProtocol:
        server.config.http_protocol_class = BoundedHttpProtocol
