"""TRL: the trainer loads the folder from `reward_funcs` and computes the rewards of the probes as completions."""

import tempfile
from typing import Any

import trl
from datasets import Dataset
from exchange import run


def rewards(name: str, request: dict[str, Any], probes: list[dict[str, Any]]) -> list[float]:
    """Build a trainer with the folder as reward function, and call the step that computes rewards."""
    rows = [{"prompt": probe["messages"][:-1], "completion": probe["messages"][-1:]} for probe in probes]
    with tempfile.TemporaryDirectory() as out:
        args = getattr(trl, f"{name}Config")(
            output_dir=out, report_to="none", use_cpu=True, bf16=False, num_generations=2, per_device_train_batch_size=2
        )
        trainer = getattr(trl, f"{name}Trainer")(
            model=request["policy"],
            reward_funcs=request["folder"],
            args=args,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        )
        prompts, completions = [row["prompt"] for row in rows], [row["completion"] for row in rows]
        found = trainer._calculate_rewards([{"prompt": prompt} for prompt in prompts], prompts, completions, None)
    return found[:, 0].tolist()


if __name__ == "__main__":
    ways: Any = {
        "GRPO": lambda request, probes: rewards("GRPO", request, probes),
        "RLOO": lambda request, probes: rewards("RLOO", request, probes),
    }
    run("trl", dict, ways)
