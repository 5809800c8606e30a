"""uvicorn's HTTP protocol with a bound on what a peer may send that is not yet a request, or part of a body.

Of its two parsers, uvicorn's h11 has such a bound (vLLM's --h11-max-incomplete-event-size sets it); httptools, which it
takes where it is installed, has none: a head without an end, or a chunk's endless trailer, would fill the memory, and
that of a peer who has no key.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 2**16  # bytes


class BoundedHttp(HttpToolsProtocol):
    """Ends a connection that sent more than MAX_HEAD bytes from which the parser made nothing."""

    pending = 0  # bytes

    def data_received(self, data: bytes) -> None:
        self.pending += len(data)
        super().data_received(data)
        if self.pending > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The head of the request has more than {MAX_HEAD} bytes.")

    def on_headers_complete(self) -> None:
        self.pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.pending = 0
        super().on_message_complete()


def bound_heads(server: Any) -> None:
    """Let a server of uvicorn's take new connections with the bound, where its protocol is the one without."""
    if server.config.http_protocol_class is HttpToolsProtocol:
        server.config.http_protocol_class = BoundedHttp
