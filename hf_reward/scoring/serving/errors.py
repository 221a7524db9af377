"""Errors of the server: one JSON format for all."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from hf_reward.metrics.counts import counted


class StrictJSON(JSONResponse):
    """JSON without NaN, with lone surrogates as escapes, so that every parser accepts it."""

    def render(self, content: Any) -> bytes:
        """Serialise to ASCII.

        Args:
            content: JSON values.

        Returns:
            The JSON text.

        Raises:
            ValueError: If a number is not finite.
        """
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class ApiError(HTTPException):
    """An error that is returned to the client, wherever it is raised."""

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
        """Return the error as JSON: `{"error": {"code", "type", "message"}}`, with `rows` if it concerns rows."""
        content: dict[str, Any] = {"code": self.status_code, "type": self.kind, "message": self.detail}
        if self.rows:
            content["rows"] = self.rows
        return StrictJSON({"error": content}, status_code=self.status_code, headers=self.headers)


_FRAMEWORK = {
    400: ("invalid_json", "The body is not valid JSON."),
    404: ("not_found", "There is no such path."),
    405: ("method_not_allowed", "This path takes another method: POST with a body, or GET without one."),
}


def from_framework(error: HTTPException, paths: Sequence[str]) -> ApiError:
    """Convert an error of the framework to our format.

    Args:
        error: An HTTP error of the framework, or an `ApiError`.
        paths: The paths of the server.

    Returns:
        The API error.
    """
    if isinstance(error, ApiError):
        return error
    kind, message = _FRAMEWORK.get(error.status_code, ("error", str(error.detail)))
    if kind == "not_found":
        message = f"{message} Available: {', '.join(paths)}."
    return ApiError(error.status_code, kind, message, headers=error.headers)


def body_too_large(limit: int) -> ApiError:
    """Return the error for a body above the size limit."""
    return ApiError(
        413,
        "too_large",
        f"The body is larger than {limit} bytes. Send fewer rows at a time, or start the server with a larger "
        "`--max-body-bytes`.",
    )


def headers_too_large(limit: int) -> ApiError:
    """Return the error for headers above the size limit."""
    return ApiError(431, "headers_too_large", f"The headers are larger than {limit} bytes. Send fewer or shorter ones.")


def reading_took_too_long(seconds: float) -> ApiError:
    """Return the error for a request that did not arrive in time; the connection is closed after it."""
    message = (
        f"The request did not arrive within {seconds:g} seconds. Send it without pauses, or start the server with a "
        "larger `--read-timeout-seconds`."
    )
    return ApiError(408, "request_timeout", message)


def shutting_down() -> ApiError:
    """Return the error for requests that arrive during shutdown."""
    return ApiError(503, "shutting_down", "The server is shutting down.")


def no_room(retry_after: int) -> ApiError:
    """Return the error for a body that exceeds the memory reserved for waiting bodies."""
    message = f"The bodies of waiting requests have reached the size limit; try again in {retry_after} seconds."
    return ApiError(429, "queue_full", message, headers={"Retry-After": str(retry_after)})


def unscorable(rows: Sequence[Mapping[str, Any]], total: int, *, is_too_large: bool = False) -> ApiError:
    """Return the error for a request with rows that have no reward.

    Args:
        rows: `index` and `reason` of each such row.
        total: Number of rows in the request.
        is_too_large: Whether some texts are too large to tokenise.

    Returns:
        The error.
    """
    first = rows[0]
    place = f"Row {first['index']}" + (f", response {first['response']}" if "response" in first else "")
    more = f" ({len(rows)} of {counted(total, 'row')} cannot be scored; all are in `rows`)" if len(rows) > 1 else ""
    status, kind = (413, "too_large") if is_too_large else (422, "unscorable")
    return ApiError(status, kind, f"{place} cannot be scored: {first['reason']}{more}", rows=rows)
