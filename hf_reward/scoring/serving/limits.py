"""Middleware that runs before a body is parsed: token, body size and timeout."""

import asyncio
import hmac

from fastapi.security import HTTPBasic, HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_reward.scoring.serving.errors import ApiError, body_too_large, no_room, reading_took_too_long

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no token."""
_BROWSER_PATHS = ("/docs", "/openapi.json")
"""Starts of paths that also take the token as the password of Basic authentication, for which browsers ask."""


class BearerToken:
    """ASGI middleware that requires a bearer token.

    Middleware, because FastAPI reads and parses a body before it calls a dependency.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = token.encode("ascii")
        self._bearer, self._basic = HTTPBearer(auto_error=False), HTTPBasic(auto_error=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or await self._is_allowed(Request(scope)):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "unauthorized",
            "This server requires a token. Send it as the header `Authorization: Bearer <token>`.",
            headers={"WWW-Authenticate": _challenge(scope["path"])},
        )
        await error.response()(scope, receive, send)

    async def _is_allowed(self, request: Request) -> bool:
        bearer = await self._bearer(request)
        given = None if bearer is None else bearer.credentials
        if given is None and _is_for_browsers(request.url.path):
            given = await self._password(request)
        # Constant time, so that the duration does not reveal how many bytes were right.
        return given is not None and hmac.compare_digest(given.encode("utf-8"), self._expected)

    async def _password(self, request: Request) -> str | None:
        try:
            basic = await self._basic(request)
        except HTTPException:  # not Base64, or without a colon
            return None
        return None if basic is None else basic.password


def _is_for_browsers(path: str) -> bool:
    return path.startswith(_BROWSER_PATHS)


def _challenge(path: str) -> str:
    return 'Basic realm="hf_reward: token as password", charset="UTF-8"' if _is_for_browsers(path) else "Bearer"


_MOST_DIGITS = 18
SMALL_BODY_BYTES = 64 * 2**10
"""Bytes of each body that are not counted, so that large bodies cannot block small requests."""
HELD_BODIES = 2
"""Number of bodies of the largest size that may be in memory at once."""


class BodyLimit:
    """ASGI middleware that limits the size of a body, the time it takes to arrive, and the memory of all bodies.

    The bytes of a body beyond the first 64 KiB count from their arrival until the request is answered.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, read_timeout: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.read_timeout = read_timeout
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 408, 413 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        # Python refuses to parse numbers with thousands of digits.
        if announced.isdecimal() and (len(announced) > _MOST_DIGITS or int(announced) > self.max_bytes):
            await body_too_large(self.max_bytes).response()(scope, receive, send)
            return
        if announced.isdecimal() and not self._has_room(int(announced)):
            await no_room(_RETRY_AFTER).response()(scope, receive, send)
            return
        body = _Body(self, receive)
        try:
            await self.app(scope, body.receive, send)
        finally:
            self._held -= body.held

    def _has_room(self, size: int, held: int = 0) -> bool:
        """Whether a body may grow to `size` bytes; `held` bytes of it are counted already."""
        return self._held - held + max(0, size - SMALL_BODY_BYTES) <= HELD_BODIES * self.max_bytes


class _Body:
    """One body while it arrives."""

    def __init__(self, limit: BodyLimit, receive: Receive) -> None:
        self._limit, self._receive = limit, receive
        self._received = 0
        self._ends = asyncio.get_running_loop().time() + limit.read_timeout
        self._is_complete = False
        self.held = 0
        """Bytes that count against the limit."""

    async def receive(self) -> Message:
        """Return the next part; after the last one, wait for the disconnect."""
        if self._is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._receive()
        except TimeoutError:
            raise reading_took_too_long(self._limit.read_timeout) from None
        self._is_complete = not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self._limit.max_bytes:
            raise body_too_large(self._limit.max_bytes)
        if not self._limit._has_room(self._received, self.held):
            raise no_room(_RETRY_AFTER)
        more = max(0, self._received - SMALL_BODY_BYTES) - self.held
        self.held += more
        self._limit._held += more
        return message


_RETRY_AFTER = 1
"""Seconds; bodies are released faster than the queue drains."""
