"""What a request must pass before its body is read: who sends it, and how large it is."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_reward.serving.errors import ApiError, body_too_large

OPEN_PATHS = frozenset({"/health"})
"""What may be asked without a token: whether the server is alive."""


class BearerToken:
    """ASGI middleware that lets only those in who know the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = token.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_allowed(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "unauthorized",
            "This server asks for a token. Send it as the header `Authorization: Bearer <token>`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        # Compares every byte, so that the time it takes tells nobody how many were right.
        is_equal = hmac.compare_digest(given.strip().encode("utf-8"), self._expected)
        return kind.lower() == "bearer" and is_equal


_MOST_DIGITS = 18


class BodyLimit:
    """ASGI middleware that refuses bodies above a size, whether they announce it or come in chunks."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        # Python refuses to read numbers of thousands of digits.
        if announced.isdecimal() and (len(announced) > _MOST_DIGITS or int(announced) > self.max_bytes):
            await body_too_large(self.max_bytes).response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise body_too_large(self.max_bytes)
            return message

        await self.app(scope, counted, send)
