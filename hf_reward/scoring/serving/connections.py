"""Limits on incomplete requests, for each connection of the server.

With one of its two parsers, uvicorn accepts headers of any size; with both, it waits for the rest of a request without
a timeout. This protocol builds on h11, which uvicorn always installs and which bounds incomplete headers.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from hf_reward.scoring.serving.errors import ApiError, headers_too_large, reading_took_too_long, shutting_down

MAX_HEADER_BYTES = 64 * 2**10
"""Limit for the request line and all headers of a request together."""
MAX_INCOMPLETE = 256
"""Connections that may be incomplete for more than `_GRACE` seconds at the same time."""
_GRACE = 1.0
"""Seconds that a request always has to arrive, also at shutdown and when too many connections are incomplete."""


@dataclass(kw_only=True)
class ConnectionLimits:
    """Settings and state shared by all connections of a server."""

    read_timeout: float
    """Seconds for the headers of a request to arrive, and again for its body."""
    on_refusal: Callable[[int], None] | None = None
    """Called with the status of each error that is sent without the application."""
    incomplete: "dict[GuardedConnection, float]" = field(default_factory=dict)
    """Incomplete connections and the time since when they wait, oldest first."""


class GuardedConnection(H11Protocol):
    """A connection with a timeout for each request and a size limit for headers."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self.limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for: tuple[str, Any] | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer; it also closes connections on which nothing is sent."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Pass data to the parser, with at most `MAX_HEADER_BYTES` of incomplete headers."""
        while data and not self.transport.is_closing():
            room = len(data)
            if self.conn.their_state is h11.IDLE:
                room = max(1, MAX_HEADER_BYTES + 1 - len(self.conn.trailing_data[0]))
            super().data_received(data[:room])
            data = data[room:]
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer an invalid HTTP request in our error format."""
        fault = sys.exc_info()[1]
        too_large = isinstance(fault, h11.RemoteProtocolError) and fault.error_status_hint == 431
        self._refuse(headers_too_large(MAX_HEADER_BYTES) if too_large else ApiError(400, "invalid_http", msg))

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Finish complete requests; incomplete ones have one more second to arrive."""
        super().shutdown()
        if self._waits_for is not None and not self.transport.is_closing():
            self._set_timer(_GRACE, shutting_down())

    def _should_upgrade(self) -> bool:
        """Never upgrade; uvicorn would log a warning for each request that asks for it."""
        return False

    def pause_writing(self) -> None:
        """Start a timer that disconnects a client that does not read its answer."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.limits.read_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that timer when the client reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # --- internal ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Run a timer while a request is incomplete: one for its headers, another for its body."""
        waits_for: tuple[str, Any] | None = None
        if self.conn.their_state is h11.SEND_BODY:
            waits_for = ("body", self.cycle)
        elif self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            waits_for = ("headers", self.cycle)  # between requests, the keep-alive timer runs
        if self.transport.is_closing():
            waits_for = None
        if waits_for == self._waits_for:
            return
        self._stop_waiting()
        if waits_for is not None:
            self._waits_for = waits_for
            # The application answers a late body itself; this later timer covers bodies it has already answered.
            seconds = self.limits.read_timeout
            self._set_timer(seconds + (_GRACE if waits_for[0] == "body" else 0), reading_took_too_long(seconds))
            self.limits.incomplete[self] = self.loop.time()
            self._make_room()

    def _make_room(self) -> None:
        """Close the oldest incomplete connections if there are too many."""
        waiting = self.limits.incomplete
        while len(waiting) > MAX_INCOMPLETE:
            oldest, since = next(iter(waiting.items()))
            if self.loop.time() - since < _GRACE:
                return
            oldest._cut(reading_took_too_long(self.limits.read_timeout))

    def _set_timer(self, seconds: float, error: ApiError) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._cut, error)

    def _stop_waiting(self) -> None:
        self._waits_for = None
        self.limits.incomplete.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self, error: ApiError) -> None:
        """Close a connection whose request is incomplete, with an error if a part of the request arrived."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._refuse(error)
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Send an error without the application, unless a response has started, and close."""
        self._stop_waiting()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            if self.limits.on_refusal is not None:
                self.limits.on_refusal(error.status_code)
            answer = error.response()
            headers = [*answer.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=answer.status_code, headers=headers),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            if self.cycle is not None:
                self.cycle.disconnected = True  # discard further output of the application
                self.cycle.message_event.set()
        self.transport.close()
