"""Rows of very different lengths, trainers for them, and the rewards of each row scored alone."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import randomize_head
from test_trainer import ranked_lists
from test_trainer_evaluation import of_lengths
from training_runs import load, make_trainer

from hf_reward import RewardTrainer
from hf_reward.modeling.reward_head import unwrap_model

SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
TIMES = ("runtime", "per_second", "total_flos", "model_preparation_time")


def long_then_short() -> list[dict[str, Any]]:
    """Four long lists and four short ones: two processes that take one half each need unlike numbers of passes."""
    long = [{**row, "prompt": "many words " * (6 + place) + row["prompt"]} for place, row in enumerate(ranked_lists(4))]
    return [*long, *ranked_lists(8)[4:]]


def jumping(count: int = 32) -> list[dict[str, Any]]:
    """Pairs from very short to rather long, in no order of length."""
    return [{**row, "prompt": "so on " * (number * 13 % 29)} for number, row in enumerate(of_lengths(count))]


def scorer(folder: Path, train: Any, out: Path, **changes: Any) -> RewardTrainer:
    """A trainer whose head is random, so that rewards differ."""
    model = load(folder)
    randomize_head(model)
    return make_trainer(model, train, out, **changes)


def rows_seen(trainer: RewardTrainer) -> list[list[int]]:
    """A list that will hold the rows of each batch that the trainer computes."""
    seen: list[list[int]] = []
    inner = trainer.compute_loss

    def note(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(inputs["row"].tolist())
        return inner(model, inputs, *args, **kwargs)

    trainer.compute_loss = note  # type: ignore[method-assign]
    return seen


class Passes:
    """The tokens of every forward pass of a trainer's backbone while it is open."""

    def __init__(self, trainer: RewardTrainer) -> None:
        self.model, self.tokens = unwrap_model(trainer.unwrapped_model()).base_model, list[int]()

    def __enter__(self) -> "Passes":
        def note(module: Any, args: Any, inputs: dict[str, Any]) -> None:
            self.tokens.append((args[0] if args else inputs["input_ids"]).numel())  # BERT hands it on by place

        self.hook = self.model.register_forward_pre_hook(note, with_kwargs=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self.hook.remove()


def numbers(entry: dict[str, Any]) -> dict[str, Any]:
    """A log entry without what a clock measured, and without what depends on the rows that share a forward pass."""
    left_out = (*TIMES, "computed_token_share")
    return {name: value for name, value in entry.items() if not any(part in name for part in left_out)}


def alone(trainer: RewardTrainer, data: Any) -> np.ndarray:
    """Rewards of a prepared dataset, each sequence by itself, 0 at padded places."""
    model, rows = unwrap_model(trainer.unwrapped_model()).eval(), list(data)
    rewards = np.zeros((len(rows), max(len(row["ranks"]) for row in rows)))
    with torch.no_grad():
        for number, row in enumerate(rows):
            for place, ids in enumerate(row["input_ids"]):
                inputs = {"input_ids": torch.tensor([ids])}
                if row.get("token_type_ids") is not None:
                    inputs["token_type_ids"] = torch.tensor([row["token_type_ids"][place]])
                rewards[number, place] = model(**inputs).logits.item()
    return rewards
