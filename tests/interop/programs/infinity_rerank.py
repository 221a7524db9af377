"""infinity-emb: its engine reranks (query, document) pairs; it has no endpoint for one formatted text."""

import asyncio
from typing import Any

from exchange import run
from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # pyright: ignore[reportMissingImports]


async def scores(request: dict[str, Any], probes: list[dict[str, Any]]) -> list[float]:
    """Rerank one document for each query, with raw scores."""
    args = EngineArgs(
        model_name_or_path=request["folder"],
        engine="torch",
        device="cpu",
        dtype="float32",
        model_warmup=False,
        bettertransformer=False,
    )
    engine = AsyncEmbeddingEngine.from_args(args)
    async with engine:
        found = []
        for probe in probes:
            ranked, _ = await engine.rerank(query=probe["prompt"], docs=[probe["response"]], raw_scores=True)
            found.append(ranked[0].relevance_score)
        return found


if __name__ == "__main__":
    run("infinity-emb", dict, {"rerank": lambda request, probes: asyncio.run(scores(request, probes))})
