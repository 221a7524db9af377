"""All routes of the server, and those that belong to no protocol."""

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from hf_reward.scoring.serving.errors import ApiError, StrictJSON
from hf_reward.scoring.serving.protocols import own, rerank, trainers, vllm
from hf_reward.scoring.serving.protocols.base import service_of

router = APIRouter()
ROUTERS = (own.router, vllm.router, rerank.router, trainers.router, router)


@router.get("/v1/models")
async def models(request: Request) -> StrictJSON:
    """List the served model in the format of OpenAI and vLLM."""
    name = service_of(request).name
    card = {"id": name, "object": "model", "created": int(request.app.state.started), "owned_by": "hf_reward"}
    return StrictJSON({"object": "list", "data": [card]})


@router.get("/health")
async def health(request: Request) -> StrictJSON:
    """Return 200, or 503 after several consecutive failed batches."""
    service = service_of(request)
    if not service.is_well:
        failures = service.batcher.failures_in_a_row
        raise ApiError(503, "unwell", f"The model failed on the last {failures} batches. Restart the server.")
    return StrictJSON({"status": "ok", "model": service.name, "queued_rows": service.batcher.waiting_rows})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the metrics for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


ENDPOINTS = tuple(route.path for part in ROUTERS for route in part.routes if isinstance(route, APIRoute))
"""Paths of all routes."""
