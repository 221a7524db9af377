"""Model -> a running server that ends in order."""

import logging
import signal
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from hf_reward.reward_scorer import RewardScorer
from hf_reward.serving.app import create_app
from hf_reward.serving.connections import ConnectionLimits, GuardedConnection
from hf_reward.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep a connection, so that none is closed just as a request arrives on it."""


def serve(model: str | Path | RewardScorer, settings: ServerSettings | None = None) -> None:
    """Serve a reward model until SIGTERM or SIGINT, then finish what was accepted and return.

    The port opens when the model is loaded. A second SIGINT cuts connections at once.

    Args:
        model: A folder or Hub id of a reward model or adapter, or a scorer.
        settings: Settings of the server.

    Raises:
        ValueError: If the model cannot score, or a loaded scorer is to be loaded differently.
        OSError: If the port cannot be listened at.
    """
    settings = settings or ServerSettings()
    scorer = _loaded(model, settings)
    if settings.is_open_to_others:
        logger.warning(
            "The server listens at %s and asks for no token: everybody who reaches it may use it. "
            "Set HF_REWARD_SERVER_TOKEN or give a token file.",
            settings.host,
        )
    _run(uvicorn.Server(configure(scorer, settings)))


def configure(scorer: RewardScorer, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn serves a model.

    Args:
        scorer: The model.
        settings: Settings of the server.

    Returns:
        The configuration: the application, and connections that wait for no request without limit.
    """
    app = create_app(scorer, settings)
    limits = ConnectionLimits(
        read_timeout=settings.read_timeout_seconds, on_refusal=app.state.service.metrics.count_refusal
    )
    connection: Any = partial(GuardedConnection, limits=limits)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=connection,
        ws="none",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


def _loaded(model: str | Path | RewardScorer, settings: ServerSettings) -> RewardScorer:
    if not isinstance(model, RewardScorer):
        options = {name: getattr(settings, name) for name in ("device", "dtype", "batch_tokens", "length_correction")}
        return RewardScorer.from_pretrained(model, **options)
    if settings.device is not None or settings.dtype != "float32":
        raise ValueError("`device` and `dtype` are for models that are loaded here; this one is loaded already.")
    if settings.length_correction and not model.corrects_length:
        raise ValueError("The scorer was loaded without `length_correction=True`, which the settings ask for.")
    return model


def _run(server: uvicorn.Server) -> None:
    """Run until a signal. uvicorn raises it again afterwards, and a clean end must not be a signal's death."""
    before = {each: signal.signal(each, server.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run()
    except SystemExit as error:  # uvicorn has printed why; without this, a taken port would end in silence
        raise OSError(f"The server could not start at {server.config.host}:{server.config.port}.") from error
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
