"""One connection of the server: limits for what arrives before a request is complete.

uvicorn accepts headers that never end with one of its parsers, and waits for the rest of a request without limit with
both. The guard builds on h11, which every installation of uvicorn has and which bounds incomplete headers.
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
"""Of the request line and all headers of a request together."""
MAX_INCOMPLETE = 256
"""Connections that may wait for the rest of a request for more than `_GRACE` seconds."""
_GRACE = 1.0
"""Seconds that a request may take to arrive before it is cut at shutdown or to make room for others."""


@dataclass(kw_only=True)
class ConnectionLimits:
    """What the connections of one server share."""

    read_timeout: float
    """Seconds for the headers of a request, and again for its body."""
    on_refusal: Callable[[int], None] = lambda status: None
    """Told the status of each answer that the application does not know of."""
    incomplete: "dict[GuardedConnection, float]" = field(default_factory=dict)
    """Connections that wait for the rest of a request, and since when; the longest wait first."""


class GuardedConnection(H11Protocol):
    """A connection whose requests have to arrive in time, and whose headers have to be small."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self.limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for: tuple[str, Any] | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a client that sends nothing at all is cut too."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Hand on what arrived, but never more of unfinished headers than is allowed."""
        while data and not self.transport.is_closing():
            room = len(data)
            if self.conn.their_state is h11.IDLE:
                room = max(1, MAX_HEADER_BYTES + 1 - len(self.conn.trailing_data[0]))
            super().data_received(data[:room])
            data = data[room:]
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP request, in the form of all our errors."""
        fault = sys.exc_info()[1]
        too_large = isinstance(fault, h11.RemoteProtocolError) and fault.error_status_hint == 431
        self._refuse(headers_too_large(MAX_HEADER_BYTES) if too_large else ApiError(400, "invalid_http", msg))

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Finish requests that are complete; those that are not have a second to become so."""
        super().shutdown()
        if self._waits_for is not None and not self.transport.is_closing():
            self._set_timer(_GRACE, shutting_down())

    def _should_upgrade(self) -> bool:
        """There is nothing to upgrade to, and no reason to log that for every client that asks."""
        return False

    def pause_writing(self) -> None:
        """A client that does not read its answer is cut after the same time."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.limits.read_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # --- inside ------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Run a clock while the client owes the rest of a request: one for its headers, another for its body."""
        waits_for: tuple[str, Any] | None = None
        if self.conn.their_state is h11.SEND_BODY:
            waits_for = ("body", self.cycle)
        elif self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            waits_for = ("headers", self.cycle)  # while nothing of a next request is here, the keep-alive clock runs
        if self.transport.is_closing():
            waits_for = None
        if waits_for == self._waits_for:
            return
        self._stop_waiting()
        if waits_for is not None:
            self._waits_for = waits_for
            # The application answers a late body itself; the second more is for clients that it has answered already.
            seconds = self.limits.read_timeout
            self._set_timer(seconds + (_GRACE if waits_for[0] == "body" else 0), reading_took_too_long(seconds))
            self.limits.incomplete[self] = self.loop.time()
            self._make_room()

    def _make_room(self) -> None:
        """Cut those that wait the longest where there are too many; clients that send whole requests wait for none."""
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
        """End a connection whose request did not arrive; say why unless nothing of it did."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._refuse(error)
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, unless it answers already, and close."""
        self._stop_waiting()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
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
                self.cycle.disconnected = True  # what the application says from now on has no reader
                self.cycle.message_event.set()
        self.transport.close()
