"""Runs of a frozen backbone with cached features, and the outputs of its backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from conftest import randomize_head
from training_runs import load, make_trainer

from hf_reward import RewardTrainer


def frozen(folder: Path, head: int = 1, **options: Any) -> Any:
    model = load(folder, freeze_backbone=True, **options)
    randomize_head(model, head)
    return model


def cached_trainer(model: Any, rows: Any, out: Path, **changes: Any) -> RewardTrainer:
    """A trainer that takes features from the cache unless told otherwise, and evaluates its training rows."""
    model = frozen(model) if isinstance(model, Path) else model
    changes = {"evaluation": rows, "cache_features": True, "learning_rate": 1e-2, **changes}
    return make_trainer(model, rows, out, **changes)


def rewards(trainer: RewardTrainer, data: Any = None) -> torch.Tensor:
    """Rewards of the evaluation rows, on the way that `evaluate` goes."""
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(data), "Evaluation")
    assert isinstance(output.label_ids, tuple)
    return torch.from_numpy(output.predictions).masked_fill(torch.from_numpy(output.label_ids[0]) == -100, 0.0)


def uncached_rewards(trainer: RewardTrainer) -> torch.Tensor:
    """The same rewards from the model as it is, each sequence by itself."""
    rows = trainer.eval_dataset["input_ids"]
    found = torch.zeros(len(rows), max(map(len, rows)))
    trainer.model.eval()
    with torch.no_grad():
        for row, sequences in enumerate(rows):
            for place, ids in enumerate(sequences):
                found[row, place] = trainer.model(input_ids=torch.tensor([ids])).logits.item()
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@contextmanager
def backbone_tokens(model: Any) -> Iterator[list[int]]:
    """Tokens of each run of the backbone."""
    seen: list[int] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def computed_tokens(trainer: RewardTrainer) -> int:
    """Tokens that the backbone computes for an evaluation."""
    trainer.checks.done = True  # the check runs the backbone on two rows of its own
    with backbone_tokens(trainer.model) as seen:
        trainer.evaluate()
    return sum(seen)


def stored(cache: Path) -> list[Path]:
    return sorted(cache.rglob("features-*"))
