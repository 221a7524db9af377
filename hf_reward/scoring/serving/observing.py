"""Pass the rewards of a client's run (`?run=NAME`) to an observer, and publish its statistics as Prometheus metrics.

The observer is given by the caller of the application: this package has the interface only.
"""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.serving.errors import ApiError
from hf_reward.scoring.serving.service import RewardService

logger = logging.getLogger(__name__)

MAX_RUNS = 64
"""Runs that are observed at the same time; a further one replaces the run whose last request is the oldest."""
_RUN = re.compile(r"[A-Za-z0-9][\w.:-]{0,63}", re.ASCII)
_LABELS = ("model", "run")


class RunObserver(Protocol):
    """Observes one run. It is called in a thread, one call at a time."""

    def add(
        self, prompts: Sequence[Any], responses: Sequence[Any], rewards: Sequence[float]
    ) -> Mapping[str, Mapping[str, float]]:
        """Add scored responses.

        Args:
            prompts: Prompt of each response, text or messages.
            responses: Texts or messages.
            rewards: Their rewards.

        Returns:
            Statistic -> series -> value, such as "mean" -> "length" -> 212.0.
        """
        ...


Observe = Callable[[str], RunObserver]
"""Creates the observer of a run, given its name."""


class ObservedRuns:
    """The observers of all runs, and their metrics: `hf_reward_run_STATISTIC{model,run,series}`."""

    def __init__(self, observe: Observe | None, registry: CollectorRegistry) -> None:
        """Create it without runs.

        Args:
            observe: Creates observers; None if runs are not observed.
            registry: Registry of the server's metrics.
        """
        self._observe, self._registry = observe, registry
        self._runs: OrderedDict[tuple[str, str], RunObserver] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="observer")  # keeps the order of the requests
        self._responses = Counter("hf_reward_run_responses", "Observed responses.", _LABELS, registry=registry)
        self._gauges: dict[str, Gauge] = {}
        self._series: dict[tuple[str, str], set[tuple[str, str]]] = {}

    def name_in(self, request: Request) -> str | None:
        """Return the run that a request names.

        Args:
            request: The HTTP request.

        Returns:
            The value of `?run=`; None without one.

        Raises:
            ApiError: If the name is not usable, or runs are not observed.
        """
        name = request.query_params.get("run")
        if name is None:
            return None
        if not _RUN.fullmatch(name):
            message = (
                "`run` must have 1 to 64 letters, digits, `.`, `_`, `:` and `-`, and start with a letter or digit."
            )
            raise ApiError(400, "invalid_run", message)
        if self._observe is None:
            raise ApiError(
                400,
                "invalid_run",
                "This server does not observe runs; one with several workers never does. Leave out `?run=`.",
            )
        return name

    async def add(
        self, run: str, service: RewardService, requests: Sequence[ScoreRequest], rewards: Sequence[float]
    ) -> None:
        """Add scored responses to a run. An error of the observer is logged; the answer has its rewards.

        Args:
            run: Name of the run.
            service: The service of the model; each model has its own runs.
            requests: The requests.
            rewards: Their rewards.
        """
        key = (service.name, run)
        observer = self._observer(key)
        pairs = [_prompt_and_response(service, each) for each in requests]
        prompts, responses = [prompt for prompt, _ in pairs], [response for _, response in pairs]
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._thread, observer.add, prompts, responses, rewards)
        except Exception:
            logger.exception("The responses of run %s cannot be observed.", run)
            return
        if key not in self._runs:  # replaced meanwhile
            return
        self._responses.labels(*key).inc(len(requests))
        for statistic, values in found.items():
            for series, value in values.items():
                self._gauge(statistic).labels(*key, series).set(value)
                self._series.setdefault(key, set()).add((statistic, series))

    def close(self) -> None:
        """Stop the thread after the calls in progress."""
        self._thread.shutdown()

    def _observer(self, key: tuple[str, str]) -> RunObserver:
        assert self._observe is not None
        if key not in self._runs:
            self._runs[key] = self._observe(key[1])
            if len(self._runs) > MAX_RUNS:
                self._forget(next(iter(self._runs)))
        self._runs.move_to_end(key)
        return self._runs[key]

    def _forget(self, key: tuple[str, str]) -> None:
        logger.warning("Run %s is not observed any more: there are more than %s runs.", key[1], MAX_RUNS)
        del self._runs[key]
        for statistic, series in self._series.pop(key, ()):
            self._gauges[statistic].remove(*key, series)
        with suppress(KeyError):  # a run whose first responses are still being observed
            self._responses.remove(*key)

    def _gauge(self, statistic: str) -> Gauge:
        if statistic not in self._gauges:
            text = f"{statistic.capitalize()} of a series of a run."
            name = f"hf_reward_run_{statistic}"
            self._gauges[statistic] = Gauge(name, text, [*_LABELS, "series"], registry=self._registry)
        return self._gauges[statistic]


def _prompt_and_response(service: RewardService, request: ScoreRequest) -> tuple[Any, Any]:
    if request.formatted:
        return service.texts.prompt_and_response(str(request.response))
    return request.prompt, request.response
