"""The models of a server by name."""

import asyncio
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.errors import ApiError
from hf_reward.scoring.serving.metrics import Metrics
from hf_reward.scoring.serving.service import RewardService, default_name
from hf_reward.scoring.serving.settings import ServerSettings


class ServedModels:
    """The services of all models, and the metrics that they share."""

    def __init__(self, scorers: RewardScorer | Mapping[str, RewardScorer], settings: ServerSettings) -> None:
        """Create a service for each model.

        Args:
            scorers: One scorer, or a name for each of several.
            settings: Limits of each queue, and the name of a single model.

        Raises:
            ValueError: If there are no scorers, or several and the name of a single model.
        """
        if not isinstance(scorers, Mapping):
            scorers = {settings.served_model_name or default_name(scorers): scorers}
        elif not scorers or settings.served_model_name is not None:
            raise ValueError("`served_model_name` is for a single scorer; several need a mapping of names to scorers.")
        self._settings, self.metrics = settings, Metrics()
        self.turn = threading.Lock()
        """Held during a batch, so that the models of a process compute one after another."""
        self._services: dict[str, RewardService] = {}
        for name, scorer in scorers.items():
            self.put(self.create(name, scorer))

    def __iter__(self) -> Iterator[RewardService]:
        return iter(self._services.values())

    def get(self, name: str | None) -> RewardService:
        """Return the service of a model.

        Args:
            name: Name of the model; None for the only one.

        Returns:
            The service.

        Raises:
            ApiError: 404 for an unknown name, 400 for None if there are several models.
        """
        names = list(self._services)
        if name is None and len(names) == 1:
            return self._services[names[0]]
        if name in self._services:
            return self._services[name]
        served = ", ".join(map(repr, names))
        if name is not None:
            raise ApiError(404, "not_found", f"This server has no such model; it serves {served}.")
        raise ApiError(
            400,
            "model_required",
            f"This server has several models: {served}. Name one in the field `model`, or with `?model=NAME` after the "
            "path if the protocol has no such field.",
        )

    def create(self, name: str, scorer: RewardScorer) -> RewardService:
        """Return a service for a scorer. It may be created in another thread."""
        return RewardService(scorer, self._settings, name=name, metrics=self.metrics.of_model(name), turn=self.turn)

    def put(self, service: RewardService) -> RewardService | None:
        """Use a service from the next request on.

        Args:
            service: The service.

        Returns:
            The service that had the name before; `retire` closes it.
        """
        before = self._services.get(service.name)
        self._services[service.name] = service
        if before is not None:
            before.batcher.on_queue = lambda rows, tokens: None
        service.metrics.watch(service.batcher)
        return before

    async def close(self) -> None:
        """Finish all accepted requests."""
        await asyncio.gather(*(service.batcher.close() for service in self))


async def retire(service: RewardService, requests: Collection["asyncio.Task[Any]"]) -> None:
    """Close a replaced service after the requests that may use it.

    Args:
        service: The service.
        requests: Tasks of all HTTP requests that started before the replacement.
    """
    if requests:
        await asyncio.wait(list(requests))
    await service.batcher.close()
