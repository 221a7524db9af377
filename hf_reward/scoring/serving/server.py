"""Run the server for a model, with a graceful shutdown."""

import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from hf_reward.data.interface import setting
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.app import create_app
from hf_reward.scoring.serving.connections import ConnectionLimits, GuardedConnection
from hf_reward.scoring.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none is closed while a request is on its way."""

_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}
"""Address for all interfaces -> address for clients on this machine."""


def serve(
    model: str | Path | RewardScorer,
    settings: ServerSettings | None = None,
    *,
    quiet: bool = False,
    on_start: Callable[[str], None] | None = None,
) -> None:
    """Serve a reward model until SIGTERM or SIGINT, then finish the accepted requests and return.

    The port is bound first and answers when the model is loaded. A second SIGINT closes connections at once.

    Args:
        model: A folder or Hub id of a reward model or adapter, or a scorer.
        settings: Settings of the server.
        quiet: Print only errors, and the address if the port is 0.
        on_start: Called with the URL for clients on this machine when the server accepts requests.

    Raises:
        ValueError: If the model cannot score, or loading options are given for a loaded scorer.
        OSError: If the port cannot be bound.
    """
    settings = settings or ServerSettings()
    with bound_socket(settings.host, settings.port) as listener:
        _serve(_loaded(model, settings), settings, listener, quiet, on_start)


@contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a port without listening yet, so that a port in use is an error before the model is loaded.

    Args:
        host: Address to listen on.
        port: The port; 0 selects a free one.

    Yields:
        socket.socket: The socket.

    Raises:
        OSError: If the port cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"`{setting('host', host)}` is not an address of this machine ({error.strerror}).") from error
    with socket.socket(family, kind, protocol) as listener:
        # Connections of a server that has just stopped do not block the port ...
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            remedy = f"Use another `{setting('host')}` or `{setting('port')}`."
            if error.errno == errno.EADDRINUSE:
                remedy = (
                    f"Use another `{setting('port')}`, `{setting('port', 0)}` for a free one, or stop the other server."
                )
            raise OSError(f"The server cannot listen on {host}:{port} ({error.strerror}). {remedy}") from error
        # ... but a second server on the port fails now, not after it has loaded its model.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield listener


def _serve(
    scorer: RewardScorer,
    settings: ServerSettings,
    listener: socket.socket,
    quiet: bool,
    on_start: Callable[[str], None] | None,
) -> None:
    if settings.is_open_to_others:
        logger.warning(
            "The server listens on %s without a token: anyone who can reach it can use it. "
            "Set HF_REWARD_SERVER_TOKEN or give a token file.",
            settings.host,
        )
    _run(Server(configure(scorer, settings, quiet=quiet), on_start), listener)


class Server(uvicorn.Server):
    """A uvicorn server that logs its address, which uvicorn omits if it gets a bound socket.

    Args:
        config: Configuration of uvicorn.
        on_start: Called with the URL for clients on this machine when the server accepts requests.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[str], None] | None = None) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening and log the address.

        Args:
            sockets: The bound socket.
        """
        await super().startup(sockets)
        if self.started and sockets:
            host, port = str(sockets[0].getsockname()[0]), int(sockets[0].getsockname()[1])
            app: Any = self.config.app
            # `quiet` raises the level of uvicorn.error only; the address of a free port is always needed.
            logging.getLogger("uvicorn.error" if self.config.port else "uvicorn").info(
                "Serving %s on %s (Ctrl+C to stop)", app.state.service.name, url_of(host, port)
            )
            if self._on_start is not None:
                self._on_start(url_of(_LOCAL.get(host, host), port))


def url_of(host: str, port: int) -> str:
    """Return the URL of an address; an IPv6 address gets brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configure(scorer: RewardScorer, settings: ServerSettings, *, quiet: bool = False) -> uvicorn.Config:
    """Return the uvicorn configuration for a model.

    Args:
        scorer: The model.
        settings: Settings of the server.
        quiet: Log only errors.

    Returns:
        The configuration, with the application and the connection limits.
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
        log_level="error" if quiet else None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )


def _loaded(model: str | Path | RewardScorer, settings: ServerSettings) -> RewardScorer:
    if not isinstance(model, RewardScorer):
        names = (
            *("device", "dtype", "max_length", "batch_tokens", "length_correction"),
            *("allow_pickle", "trust_remote_code"),
        )
        return RewardScorer.from_pretrained(model, **{name: getattr(settings, name) for name in names})
    permits = settings.allow_pickle or settings.trust_remote_code
    if settings.device or settings.dtype != "float32" or settings.max_length or permits:
        raise ValueError(
            "`device`, `dtype`, `max_length`, `allow_pickle` and `trust_remote_code` apply only when `serve` loads the "
            "model; this scorer is loaded already. Pass these options to `RewardScorer.from_pretrained`."
        )
    if settings.length_correction and not model.corrects_length:
        raise ValueError("The settings have `length_correction=True`, but the scorer was loaded without it.")
    return model


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run until a signal. uvicorn raises the signal again afterwards; our handlers make the exit status 0."""
    before = {each: signal.signal(each, server.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    except SystemExit as error:  # uvicorn has logged the reason
        raise OSError(f"The server could not start on {server.config.host}:{server.config.port}.") from error
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
