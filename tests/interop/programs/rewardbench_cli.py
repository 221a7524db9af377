"""rewardbench: its own evaluation of a file of conversations.

Its pipeline moves inputs to "cuda"; here they stay on the CPU.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from exchange import run
from transformers import BatchEncoding

os.environ["WANDB_MODE"] = "disabled"


def scores(request: dict[str, Any], probes: list[dict[str, Any]]) -> list[float]:
    """Run the evaluation with scores of conversations, and read the file that it writes."""
    from rewardbench.rewardbench import Args, rewardbench  # pyright: ignore[reportMissingImports]

    stay = patch.object(BatchEncoding, "to", lambda inputs, *_, **__: inputs)
    with tempfile.TemporaryDirectory() as place, stay, torch.no_grad():
        rows = Path(place, "rows.json")
        rows.write_text("".join(json.dumps({"messages": probe["messages"]}) + "\n" for probe in probes))
        args = Args(
            dataset=str(rows),
            load_json=True,
            prioritize_scoring=True,
            model=request["folder"],
            not_quantized=True,
            torch_dtype=request["dtype"],
            max_length=2048,
            output_dir=f"{place}/out",
        )
        rewardbench(args)
        # The name of the file is `output_dir` joined with the model's absolute path, which replaces it.
        written = Path(args.output_dir, f"{args.model}_outputs.jsonl")
        found = [json.loads(line)["results"] for line in written.read_text().splitlines()]
        written.unlink()
    return found


if __name__ == "__main__":
    run("rewardbench", dict, {"messages": scores})
