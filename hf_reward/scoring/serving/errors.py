"""What a server says when it cannot answer: one shape of JSON for every error."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


class StrictJSON(JSONResponse):
    """JSON that every parser takes: no NaN, and half a surrogate pair stays an escape instead of failing."""

    def render(self, content: Any) -> bytes:
        """Serialise.

        Args:
            content: JSON values.

        Returns:
            ASCII.

        Raises:
            ValueError: If a number is not finite.
        """
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class ApiError(HTTPException):
    """A request that gets no answer, and why. The framework passes it on from wherever it is raised."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        rows: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.kind = kind
        self.rows = list(rows)

    def response(self) -> StrictJSON:
        """The error as JSON: `{"error": {"code", "type", "message"}}`, and `rows` where some are at fault."""
        content: dict[str, Any] = {"code": self.status_code, "type": self.kind, "message": self.detail}
        if self.rows:
            content["rows"] = self.rows
        return StrictJSON({"error": content}, status_code=self.status_code, headers=self.headers)


_FRAMEWORK = {
    400: ("invalid_json", "The body is no JSON that can be read."),
    404: ("not_found", "There is no such path. There are /score, /rank, /get_reward, /classify, /health, /metrics."),
    405: ("method_not_allowed", "This path takes another method: POST with a body, or GET without one."),
}


def from_framework(error: HTTPException) -> ApiError:
    """An error of the framework in our form.

    Args:
        error: No such path, another method, no JSON, or one of ours.

    Returns:
        The error.
    """
    if isinstance(error, ApiError):
        return error
    kind, message = _FRAMEWORK.get(error.status_code, ("error", str(error.detail)))
    return ApiError(error.status_code, kind, message, headers=error.headers)


def body_too_large(limit: int) -> ApiError:
    """The body has more bytes than the server takes."""
    return ApiError(
        413,
        "too_large",
        f"The body is larger than {limit} bytes. Send fewer rows at a time, or start the server with a larger "
        "`--max-body-bytes`.",
    )


def headers_too_large(limit: int) -> ApiError:
    """The request line and the headers have more bytes than the server takes."""
    return ApiError(431, "headers_too_large", f"The headers are larger than {limit} bytes. Send fewer or shorter ones.")


def reading_took_too_long(seconds: float) -> ApiError:
    """The rest of a request did not arrive; the connection is closed, so that the rest cannot pass for a request."""
    message = (
        f"The request did not arrive within {seconds:g} seconds. Send it at once, or start the server with a larger "
        "`--read-timeout-seconds`."
    )
    return ApiError(408, "request_timeout", message)


def shutting_down() -> ApiError:
    """The server ends."""
    return ApiError(503, "shutting_down", "The server is shutting down.")


def no_room(retry_after: int) -> ApiError:
    """The bodies of other requests take up what the server holds of them."""
    message = f"The bodies of waiting requests are as large as allowed; try again in {retry_after} seconds."
    return ApiError(429, "queue_full", message, headers={"Retry-After": str(retry_after)})


def unscorable(rows: Sequence[Mapping[str, Any]], total: int, *, is_too_large: bool = False) -> ApiError:
    """Some rows of a request have no reward.

    Args:
        rows: `index` and `reason` of each.
        total: Rows of the request.
        is_too_large: Whether some have texts that are too large to be tokenised.

    Returns:
        The error.
    """
    first = rows[0]
    place = f"Row {first['index']}" + (f", response {first['response']}" if "response" in first else "")
    more = f" ({len(rows)} of {total} rows cannot be scored; all are in `rows`)" if len(rows) > 1 else ""
    status, kind = (413, "too_large") if is_too_large else (422, "unscorable")
    return ApiError(status, kind, f"{place} cannot be scored: {first['reason']}{more}", rows=rows)
