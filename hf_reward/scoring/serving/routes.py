"""The endpoints."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.serving.errors import ApiError, StrictJSON
from hf_reward.scoring.serving.protocol import ClassifyBody, OpenRlhfBody, RankBody, ScoreBody
from hf_reward.scoring.serving.service import RewardService, Scored, UnscorableError, by_row, unless_client_leaves

router = APIRouter()

ENDPOINTS = frozenset({"/score", "/rank", "/get_reward", "/classify", "/v1/models", "/health", "/metrics"})


@router.post("/score")
async def score(body: ScoreBody, request: Request) -> StrictJSON:
    """Score each response."""
    groups = body.groups()
    scored, rewards = await _score_groups(request, groups, body.items is not None, body.allow_empty)
    flat = rewards if body.items is not None else rewards[0]
    return StrictJSON({"model": _service(request).name, "rewards": flat, "tokens": scored.tokens})


@router.post("/rank")
async def rank(body: RankBody, request: Request) -> StrictJSON:
    """Rank the responses to a prompt, best first; equal rewards keep their order."""
    groups = body.groups()
    scored, rewards = await _score_groups(request, groups, body.items is not None, body.allow_empty)
    rankings = [_ranking(group) for group in rewards]
    found = {"results": rankings} if body.items is not None else rankings[0]
    return StrictJSON({"model": _service(request).name, **found, "tokens": scored.tokens})


@router.post("/get_reward")
async def get_reward(body: OpenRlhfBody, request: Request) -> StrictJSON:
    """Answer OpenRLHF's trainer, which optimises `rewards` and logs `scores`."""
    scored = await _score(request, body.requests())
    return StrictJSON({"rewards": scored.rewards, "scores": scored.rewards})


@router.post("/classify")
async def classify(body: ClassifyBody, request: Request) -> StrictJSON:
    """Answer as vLLM does for a one-label regression model: the "probability" is the reward."""
    service = _service(request)
    if body.model not in (None, service.name):
        raise ApiError(404, "not_found", f"This server has no such model; it serves {service.name!r}.")
    ids = body.token_ids()
    scored = await _score(request, body.requests() if ids is None else [], ids)
    return StrictJSON(
        {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": service.name,
            "data": [
                {"index": index, "label": service.label, "probs": [reward], "num_classes": 1}
                for index, reward in enumerate(scored.rewards)
            ],
            "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens, "completion_tokens": 0},
        }
    )


@router.get("/v1/models")
async def models(request: Request) -> StrictJSON:
    """List the served model in the format of OpenAI and vLLM."""
    name = _service(request).name
    card = {"id": name, "object": "model", "created": int(request.app.state.started), "owned_by": "hf_reward"}
    return StrictJSON({"object": "list", "data": [card]})


@router.get("/health")
async def health(request: Request) -> StrictJSON:
    """Return 200, or 503 after several consecutive failed batches."""
    service = _service(request)
    if not service.is_well:
        failures = service.batcher.failures_in_a_row
        raise ApiError(503, "unwell", f"The model failed on the last {failures} batches. Restart the server.")
    return StrictJSON({"status": "ok", "model": service.name, "queued_rows": service.batcher.waiting_rows})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the metrics for Prometheus."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _service(request: Request) -> RewardService:
    return request.app.state.service


async def _score(request: Request, requests: Sequence[ScoreRequest], ids: Sequence[list[int]] | None = None) -> Scored:
    """Score for the endpoints of other protocols, where empty responses are allowed."""
    service = _service(request)
    work = service.score(requests, allow_empty=True) if ids is None else service.score_token_ids(ids)
    try:
        return await unless_client_leaves(request, work)
    except UnscorableError as error:
        raise by_row(error) from error


async def _score_groups(
    request: Request, groups: list[list[ScoreRequest]], are_items: bool, allow_empty: bool
) -> tuple[Scored, list[list[float]]]:
    requests = [each for group in groups for each in group]
    sizes = [len(group) for group in groups]
    try:
        scored = await unless_client_leaves(request, _service(request).score(requests, allow_empty=allow_empty))
    except UnscorableError as error:
        raise by_row(error, sizes if are_items else None) from error
    ends = np.cumsum(sizes)
    rewards = [scored.rewards[end - size : end] for end, size in zip(ends.tolist(), sizes, strict=True)]
    return scored, rewards


def _ranking(rewards: list[float]) -> dict[str, Any]:
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place])
    return {"rewards": rewards, "ranking": order, "best": order[0]}
