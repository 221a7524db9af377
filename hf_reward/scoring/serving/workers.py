"""Several server processes that share one port, under uvicorn's process manager.

Each worker loads the models itself. The workers accept connections from the same socket, and the kernel decides which
one gets a connection. A worker that dies is replaced, and SIGHUP replaces all of them one by one.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from filelock import FileLock, Timeout
from prometheus_client.multiprocess import mark_process_dead
from tqdm.auto import tqdm
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess

from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.app import create_app
from hf_reward.scoring.serving.connections import ConnectionLimits
from hf_reward.scoring.serving.metrics import MULTIPROCESS_FOLDER
from hf_reward.scoring.serving.settings import ServerSettings

logger = logging.getLogger("uvicorn.error")

_UNRESPONSIVE_SECONDS = 600
"""A worker that has not answered its manager for so long is replaced; a new one imports torch and loads the models."""


class WorkerManager(Multiprocess):
    """Starts and replaces the workers of a server.

    Args:
        config: Configuration of uvicorn, whose application is a factory.
        listener: The bound socket.
        on_ready: Called when all workers accept requests.
    """

    def __init__(self, config: uvicorn.Config, listener: socket.socket, on_ready: Callable[[], None]) -> None:
        super().__init__(config, [listener])
        self._on_ready = on_ready
        self.failed = False
        """Whether a worker could not start."""

    def init_processes(self) -> None:
        """Start the workers and wait until they accept requests."""
        super().init_processes()
        waiting = list(self.processes)
        while waiting and not self.should_exit.is_set():
            self.handle_signals()
            if any(worker.exitcode is not None for worker in waiting):
                self.failed = True
                self.should_exit.set()
            waiting = [worker for worker in waiting if not worker.is_ready(timeout=0.2)]
        if not self.should_exit.is_set():
            self._on_ready()

    def keep_subprocess_alive(self) -> None:
        """Replace workers that ended; stop if a replacement cannot start."""
        super().keep_subprocess_alive()
        self.failed |= any(worker.exitcode == STARTUP_FAILURE for worker in self.processes)

    def handle_hup(self) -> None:
        """Replace the workers one by one, each when its successor accepts requests."""
        factory: Any = self.config.app
        self.config.app = partial(factory, generation=factory.keywords["generation"] + 1)
        super().handle_hup()


def run_workers(
    load: Callable[[ServerSettings], RewardScorer | Mapping[str, RewardScorer]],
    settings: ServerSettings,
    limits: ConnectionLimits,
    listener: socket.socket,
    options: Mapping[str, Any],
    on_ready: Callable[[], None],
) -> None:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT.

    Args:
        load: Loads the models, in each worker; it must be picklable.
        settings: Settings of the server.
        limits: Limits of its connections.
        listener: The bound socket.
        options: Further arguments of `uvicorn.Config`.
        on_ready: Called when all workers accept requests.

    Raises:
        OSError: If a worker cannot start; it has logged the reason.
    """
    before = {each: signal.getsignal(each) for each in signal.valid_signals()}
    earlier = os.environ.get(MULTIPROCESS_FOLDER)
    with TemporaryDirectory(prefix="hf_reward-workers-") as folder:
        os.environ[MULTIPROCESS_FOLDER] = folder  # the workers read it when they import prometheus_client
        factory = partial(worker_app, load, settings, limits, Path(folder), generation=0)
        config = uvicorn.Config(
            factory,  # pyright: ignore[reportArgumentType] - a factory
            factory=True,
            workers=settings.workers,
            timeout_worker_healthcheck=_UNRESPONSIVE_SECONDS,
            **options,
        )
        manager = WorkerManager(config, listener, on_ready)
        try:
            manager.run()
        finally:
            for each, handler in before.items():
                with suppress(OSError, ValueError, TypeError):  # SIGKILL, and handlers that are not Python's
                    signal.signal(each, handler)
            os.environ.pop(MULTIPROCESS_FOLDER)
            if earlier is not None:
                os.environ[MULTIPROCESS_FOLDER] = earlier
    if manager.failed:
        raise OSError(f"A worker could not start on {settings.host}:{settings.port}; its message is above.")


def worker_app(
    load: Callable[[ServerSettings], RewardScorer | Mapping[str, RewardScorer]],
    settings: ServerSettings,
    limits: ConnectionLimits,
    folder: Path,
    *,
    generation: int,
) -> FastAPI:
    """Create the application of a worker.

    Args:
        load: Loads the models.
        settings: Settings of the server.
        limits: Limits of its connections.
        folder: Folder that all workers of a server share.
        generation: Number of reloads before this worker.

    Returns:
        The application.
    """
    end_with_manager()
    tqdm.set_lock(threading.RLock())  # its lock for several processes would be reported as leaked at the end
    number, lock = take_number(folder, generation)
    forget_dead_processes(folder)
    if settings.device is None and torch.cuda.is_available():
        settings = with_device(settings, number, torch.cuda.device_count())
    elif settings.device in (None, "cpu"):
        torch.set_num_threads(max(1, torch.get_num_threads() // settings.workers))
    try:
        app = create_app(load(settings), settings)
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        sys.exit(STARTUP_FAILURE)
    app.state.worker = lock  # the number is taken until the process ends
    limits.on_refusal = app.state.models.metrics.count_refusal
    return app


def end_with_manager() -> None:
    """Shut this process down when its parent process has ended, however that happened."""
    manager = multiprocessing.parent_process()
    assert manager is not None

    def wait() -> None:
        manager.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="manager", daemon=True).start()


def take_number(folder: Path, generation: int) -> tuple[int, FileLock]:
    """Take the lowest number that no other worker of a generation has.

    Args:
        folder: Folder that all workers of a server share.
        generation: The generation.

    Returns:
        The number, from 0, and the lock that holds it until the process ends.
    """
    number = 0
    while True:
        lock = FileLock(folder / f"worker-{generation}-{number}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            number += 1
            continue
        return number, lock


def with_device(settings: ServerSettings, number: int, devices: int) -> ServerSettings:
    """Return the settings of a worker on a machine with several GPUs, which the workers use in turn."""
    return replace(settings, device=f"cuda:{number % devices}")


def forget_dead_processes(folder: Path) -> None:
    """Remove the queue lengths of workers that no longer exist from the metrics."""
    for file in folder.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))
