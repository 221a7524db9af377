"""The ASGI application: routes, error handlers and middleware around a scorer."""

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.documentation import ERRORS, documented_app
from hf_reward.scoring.serving.errors import ApiError, from_framework
from hf_reward.scoring.serving.limits import BearerToken, BodyLimit
from hf_reward.scoring.serving.models import ServedModels
from hf_reward.scoring.serving.observing import Observe, ObservedRuns
from hf_reward.scoring.serving.protocols.base import TAG
from hf_reward.scoring.serving.routes import ENDPOINTS, ROUTERS
from hf_reward.scoring.serving.settings import ServerSettings


def create_app(
    scorers: RewardScorer | Mapping[str, RewardScorer],
    settings: ServerSettings | None = None,
    *,
    observe: Observe | None = None,
) -> FastAPI:
    """Create the application.

    Args:
        scorers: The scorer, or several with their names. From now on only the application may call them.
        settings: Limits, the name of a single model and the token. `host` and `port` are ignored.
        observe: Creates the observer of a client's run; by default runs (`?run=NAME`) are an error.

    Returns:
        The application. On shutdown it finishes the accepted requests.

    Raises:
        ValueError: If there are no scorers, or several and a name for a single one.
    """
    settings = settings or ServerSettings()
    models = ServedModels(scorers, settings)
    app = documented_app(lifespan=_closing, takes_token=settings.token is not None)
    app.state.models, app.state.started = models, time.time()
    app.state.runs = ObservedRuns(observe, models.metrics.registry)
    for router in ROUTERS:
        app.include_router(router, responses=ERRORS)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(Exception, _server_error)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, read_timeout=settings.read_timeout_seconds)
    if settings.token is not None:
        app.add_middleware(BearerToken, token=settings.token)
    models.metrics.count_requests(app, ENDPOINTS)  # the last middleware is the outermost
    return app


@asynccontextmanager
async def _closing(app: FastAPI) -> AsyncIterator[None]:
    yield
    await app.state.models.close()
    app.state.runs.close()


async def _http_error(request: Request, error: Any) -> Response:
    return from_framework(error, ENDPOINTS).response()


async def _invalid_body(request: Request, error: Any) -> Response:
    """Describe what is wrong with a body, without repeating its content."""
    problems = error.errors()
    if not _is_json(request.headers.get("content-type", "")):
        return ApiError(415, "not_json", "Send JSON, with the header `Content-Type: application/json`.").response()
    if any(each["type"] == "json_invalid" for each in problems):
        return ApiError(400, "invalid_json", f"The body is not valid JSON: {problems[0]['ctx']['error']}.").response()
    message = "; ".join(_description(each) for each in problems[:5])
    return ApiError(422, "invalid_body", f"The body does not fit {request.url.path}: {message}.").response()


def _is_json(content_type: str) -> bool:
    """Whether the framework parses a media type as JSON."""
    kind, _, form = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (form == "json" or form.endswith("+json"))


_NAME = re.compile(r"[A-Za-z_][\w\[\],-]{0,39}")
"""A plausible field name. Error messages repeat nothing else that was sent."""


def _description(problem: Any) -> str:
    parts = [str(part) for part in problem["loc"] if part != "body"]
    parts = [part for part in parts if not part.startswith(TAG)]
    place = ".".join(part if part.isdecimal() or _NAME.fullmatch(part) else "?" for part in parts)
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


async def _server_error(request: Request, error: Exception) -> Response:
    message = f"The server failed ({type(error).__name__}); its log has the details."
    return ApiError(500, "server_failed", message).response()
