"""All routes of the server, and those that belong to no protocol."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from hf_reward.scoring.serving import documentation
from hf_reward.scoring.serving.errors import ApiError, StrictJSON
from hf_reward.scoring.serving.models import ServedModels
from hf_reward.scoring.serving.protocols import answers, decisions, own, rerank, trainers, vllm

router = APIRouter(tags=["Server"])
ROUTERS = (
    *(own.router, trainers.router, vllm.router, rerank.router, decisions.router),
    *(router, documentation.router),
)


def models_of(request: Request) -> ServedModels:
    """Return the models of an application."""
    return request.app.state.models


@router.get("/v1/models", summary="Served models", response_model=answers.Models)
async def models(request: Request) -> StrictJSON:
    """List the served models in the format of OpenAI and vLLM."""
    card = {"object": "model", "created": int(request.app.state.started), "owned_by": "hf_reward"}
    return StrictJSON({"object": "list", "data": [{"id": each.name, **card} for each in models_of(request)]})


@router.get("/health", summary="Health check", response_model=answers.Health)
async def health(request: Request) -> StrictJSON:
    """Return 200, or 503 after several consecutive failed batches."""
    services = list(models_of(request))
    for service in services:
        if not service.is_well:
            failures = service.batcher.failures_in_a_row
            which = f" {service.name!r}" if len(services) > 1 else ""
            message = f"The model{which} failed on the last {failures} batches. Restart the server."
            raise ApiError(503, "unwell", message)
    queued = sum(service.batcher.waiting_rows for service in services)
    return StrictJSON({"status": "ok", "models": [service.name for service in services], "queued_rows": queued})


_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=_TEXT)
async def metrics(request: Request) -> Response:
    """Return the metrics for Prometheus."""
    return Response(models_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


ENDPOINTS = tuple(route.path for part in ROUTERS for route in part.routes if isinstance(route, APIRoute))
"""Paths of all routes."""
