"""Run the server for one or several models, with a graceful shutdown and a reload after SIGHUP."""

import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from hf_reward.data.interface import setting
from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.app import create_app
from hf_reward.scoring.serving.connections import ConnectionLimits, GuardedConnection
from hf_reward.scoring.serving.models import ServedModels
from hf_reward.scoring.serving.observing import Observe
from hf_reward.scoring.serving.reloading import Load, Reloader
from hf_reward.scoring.serving.settings import ServerSettings
from hf_reward.scoring.serving.workers import run_workers

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none is closed while a request is on its way."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}
"""Address for all interfaces -> address for clients on this machine."""


Source = str | Path | RewardScorer
"""A folder or Hub id of a reward model or adapter, or a scorer."""


def serve(
    models: Source | Mapping[str, Source],
    settings: ServerSettings | None = None,
    *,
    quiet: bool = False,
    on_start: Callable[[str], None] | None = None,
    observe: Observe | None = None,
) -> None:
    """Serve reward models until SIGTERM or SIGINT, then finish the accepted requests and return.

    The port is bound first and answers when the models are loaded. A second SIGINT closes connections at once. SIGHUP
    loads folders and Hub ids again. Several workers do not observe runs, because none of them sees all responses.
    Call this function under `if __name__ == "__main__":` then, because they import the program's main module.

    Args:
        models: A model, or several with their names.
        settings: Settings of the server.
        quiet: Print only errors, and the address if the port is 0.
        on_start: Called with the URL for clients on this machine when the server accepts requests.
        observe: Creates the observer of a client's run (`?run=NAME`), see `create_app`.

    Raises:
        ValueError: If a model cannot score, or a loaded scorer is given with loading options or several workers.
        OSError: If the port cannot be bound, or a worker cannot start.
    """
    settings = settings or ServerSettings()
    with bound_socket(settings.host, settings.port) as listener:
        if settings.workers > 1:
            _warn_if_open(settings)
            _run_workers(models, settings, listener, quiet=quiet, on_start=on_start)
            return
        # No variable here may hold a scorer, because a replaced one must be freed.
        config = configure(_all_loaded(models, settings), settings, quiet=quiet, observe=observe)
        _warn_if_open(settings)
        _run(Server(config, on_start, _loads(config.app, models, settings), settings), listener)


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


def _all_loaded(
    models: Source | Mapping[str, Source], settings: ServerSettings
) -> RewardScorer | dict[str, RewardScorer]:
    if isinstance(models, Mapping):
        return {name: _loaded(source, settings) for name, source in models.items()}
    return _loaded(models, settings)


def _loads(app: Any, models: Source | Mapping[str, Source], settings: ServerSettings) -> dict[str, Load]:
    """Return functions that load the models again, by their served names."""
    names = [service.name for service in app.state.models]  # in the order of the models
    loads = {}
    for name, source in zip(names, models.values() if isinstance(models, Mapping) else [models], strict=True):
        if isinstance(source, RewardScorer):
            logger.debug("%s was given as a scorer, so SIGHUP does not load it again.", name)
        else:
            loads[name] = partial(_loaded, source, settings)
    return loads


def _run_workers(
    models: Source | Mapping[str, Source],
    settings: ServerSettings,
    listener: socket.socket,
    *,
    quiet: bool,
    on_start: Callable[[str], None] | None,
) -> None:
    sources = models.values() if isinstance(models, Mapping) else [models]
    if any(isinstance(source, RewardScorer) for source in sources):
        raise ValueError(
            f"`{setting('workers', settings.workers)}` needs folders or Hub ids, because each worker loads the models."
        )
    host, port = str(listener.getsockname()[0]), int(listener.getsockname()[1])

    def ready() -> None:
        text = "Serving with %d workers on %s (Ctrl+C to stop)"
        logging.getLogger("uvicorn.error" if settings.port else "uvicorn").info(
            text, settings.workers, url_of(host, port)
        )
        if on_start is not None:
            on_start(url_of(_LOCAL.get(host, host), port))

    limits = ConnectionLimits(read_timeout=settings.read_timeout_seconds)
    options = _uvicorn_options(settings, limits, quiet=quiet)
    load = partial(_all_loaded, models)  # gets the settings of the worker
    run_workers(load, settings, limits, listener, options, ready)


def _warn_if_open(settings: ServerSettings) -> None:
    if settings.is_open_to_others:
        logger.warning(
            "The server listens on %s without a token: anyone who can reach it can use it. "
            "Set HF_REWARD_SERVER_TOKEN or give a token file.",
            settings.host,
        )


class Server(uvicorn.Server):
    """A uvicorn server that logs its address, which uvicorn omits if it gets a bound socket, and reloads its models.

    Args:
        config: Configuration of uvicorn.
        on_start: Called with the URL for clients on this machine when the server accepts requests.
        loads: Name of a model -> function that loads it again after SIGHUP.
        settings: Settings of the server.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_start: Callable[[str], None] | None = None,
        loads: Mapping[str, Load] | None = None,
        settings: ServerSettings | None = None,
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        app: Any = config.app
        self._models: ServedModels = app.state.models
        # Loading in half precision changes the default dtype of the process, so no model may compute meanwhile.
        changes_default = settings is not None and settings.dtype != "float32"
        pause = self._models.turn if changes_default else nullcontext()
        self._reloader = Reloader(self._models, loads or {}, lambda: set(self.server_state.tasks), pause=pause)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening and log the address.

        Args:
            sockets: The bound socket.
        """
        await super().startup(sockets)
        if self.started and sockets:
            self._reloader.start()
            host, port = str(sockets[0].getsockname()[0]), int(sockets[0].getsockname()[1])
            # `quiet` raises the level of uvicorn.error only; the address of a free port is always needed.
            logging.getLogger("uvicorn.error" if self.config.port else "uvicorn").info(
                "Serving %s on %s (Ctrl+C to stop)", ", ".join(each.name for each in self._models), url_of(host, port)
            )
            if self._on_start is not None:
                self._on_start(url_of(_LOCAL.get(host, host), port))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop reloading, finish the accepted requests and stop.

        Args:
            sockets: The bound socket.
        """
        await self._reloader.stop()
        await super().shutdown(sockets)


def url_of(host: str, port: int) -> str:
    """Return the URL of an address; an IPv6 address gets brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configure(
    scorers: RewardScorer | Mapping[str, RewardScorer],
    settings: ServerSettings,
    *,
    quiet: bool = False,
    observe: Observe | None = None,
) -> uvicorn.Config:
    """Return the uvicorn configuration for one or several models.

    Args:
        scorers: The model, or several with their names.
        settings: Settings of the server.
        quiet: Log only errors.
        observe: Creates the observer of a client's run, see `create_app`.

    Returns:
        The configuration, with the application and the connection limits.
    """
    app = create_app(scorers, settings, observe=observe)
    limits = ConnectionLimits(
        read_timeout=settings.read_timeout_seconds, on_refusal=app.state.models.metrics.count_refusal
    )
    return uvicorn.Config(app, **_uvicorn_options(settings, limits, quiet=quiet))


def _uvicorn_options(settings: ServerSettings, limits: ConnectionLimits, *, quiet: bool) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "http": partial(GuardedConnection, limits=limits),
        "ws": "none",
        "log_level": "error" if quiet else None,
        "access_log": False,
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": settings.shutdown_seconds,
    }


def _loaded(model: Source, settings: ServerSettings) -> RewardScorer:
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
    before: dict[int, Any] = {each: signal.getsignal(each) for each in _SIGNALS}
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, server.handle_exit)
    try:
        server.run(sockets=[listener])
    except SystemExit as error:  # uvicorn has logged the reason
        raise OSError(f"The server could not start on {server.config.host}:{server.config.port}.") from error
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
