"""A tiny scorer for tests of the server, and clients that call an application without a socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from saved_models import saved_model

from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.app import create_app
from hf_reward.scoring.serving.settings import ServerSettings


def tiny_scorer(source: Path, folder: Path, **options: Any) -> RewardScorer:
    """A scorer of a saved tiny model with a random head."""
    return RewardScorer.from_pretrained(saved_model(source, folder), device="cpu", **options)


@asynccontextmanager
async def client_of(scorer: Any, observe: Any = None, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the application, whose shutdown runs at the end."""
    name = None if isinstance(scorer, dict) else "tiny"
    app = create_app(scorer, ServerSettings(served_model_name=name, **settings), observe=observe)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client,
    ):
        yield client


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine, but not for ever."""
    asyncio.run(asyncio.wait_for(test(), 60))


def asked(
    scorer: Any, test: Callable[[httpx2.AsyncClient], Coroutine[Any, Any, None]], observe: Any = None, **settings: Any
) -> None:
    """Run a test with a client of an application."""

    async def whole() -> None:
        async with client_of(scorer, observe, **settings) as client:
            await test(client)

    run(whole)


def error_of(answer: httpx2.Response, status: int, kind: str) -> dict[str, Any]:
    """The error in an answer, in the one form that errors have."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (status, kind)
    assert error["message"]
    return error
