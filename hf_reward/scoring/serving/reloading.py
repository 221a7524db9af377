"""Load the models of a running server again after SIGHUP, without rejecting a request."""

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.models import ServedModels, retire

logger = logging.getLogger(__name__)

Load = Callable[[], RewardScorer]


class Reloader:
    """Waits for SIGHUP and loads the models again.

    New requests get the old model until the new one is loaded, so both need memory for some time. If a model cannot be
    loaded, the old one stays.
    """

    def __init__(
        self,
        models: ServedModels,
        loads: Mapping[str, Load],
        in_flight: Callable[[], Collection["asyncio.Task[Any]"]],
        *,
        pause: AbstractContextManager[Any],
    ) -> None:
        """Create a reloader; `start` makes it wait.

        Args:
            models: The models of the server.
            loads: Name of a model -> function that loads it. It is called in a thread.
            in_flight: Returns the tasks of the HTTP requests that are being answered.
            pause: Entered in the thread while a model is loaded.
        """
        self._models, self._loads, self._in_flight, self._pause = models, loads, in_flight, pause
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Wait for SIGHUP, where it exists and Python allows it: in the main thread."""
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Ignore further signals. A model that is being loaded is not used any more."""
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the default would end the process during the shutdown
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()  # signals during the reload ask for one more
            for name in self._loads:
                await self.reload(name)

    async def reload(self, name: str) -> bool:
        """Load one model again.

        Args:
            name: Its name.

        Returns:
            Whether it was replaced. If not, the reason is logged.
        """
        logger.info("Loading %s again.", name)
        try:
            service = await asyncio.to_thread(self._loaded, name)
        except Exception:  # whatever is wrong with the files, the old model still works
            logger.exception("%s could not be loaded again. The server keeps the old model.", name)
            self._models.metrics.reloads.labels(name, "failed").inc()
            return False
        before, requests = self._models.put(service), self._in_flight()
        self._models.metrics.reloads.labels(name, "ok").inc()
        logger.info("Requests to %s are now answered by the model that was loaded again.", name)
        if before is not None:
            await retire(before, requests)
        del before
        await asyncio.to_thread(_free)
        return True

    def _loaded(self, name: str) -> Any:
        with self._pause:
            return self._models.create(name, self._loads[name]())


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
