"""The default learning rate of a head that starts at zero."""

import math
from typing import Any

import pytest
import torch
from conftest import randomize_head
from peft import LoraConfig
from training_runs import largest_difference, load, make_trainer, weights

from hf_reward.training.head_rate import STEP, default_head_rate


def rates(trainer: Any) -> dict[str, float]:
    """Return the learning rates of the head and of the other parameters in a new optimizer."""
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {
        "head" if "score" in names[id(parameter)] else "backbone": group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    )
    return found


def test_the_default_is_the_step_over_the_features_and_never_below_the_backbone():
    assert default_head_rate(1e-5, 500) == pytest.approx(4e-3)
    assert default_head_rate(1e-5, 4096) == pytest.approx(2 / 4096)
    assert default_head_rate(5e-3, 500) == 5e-3
    assert default_head_rate(0.0, 500) == 0.0  # trains nothing


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, target_modules="all-linear")])
def test_a_head_that_starts_at_zero_gets_the_default(make_model_folder, chat_pairs, tmp_path, lora):
    model = load(make_model_folder("llama"))
    width = model.score.in_features
    trainer = make_trainer(model, chat_pairs[:8], tmp_path / "run", learning_rate=1e-5, peft_config=lora)
    assert rates(trainer) == {"head": pytest.approx(STEP / width), "backbone": 1e-5}
    assert trainer.args.head_learning_rate == pytest.approx(STEP / width)  # stored with the run and in its card


def test_several_heads_get_the_default_too(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs[:8], tmp_path / "run", learning_rate=1e-5, num_reward_heads=3
    )
    assert trainer.args.head_learning_rate > 1e-5


@pytest.mark.parametrize(
    "case", ["trained head", "frozen backbone", "own optimizer", "other optimizer", "own rate", "higher rate", "zero"]
)
def test_it_applies_only_where_it_is_needed(make_model_folder, chat_pairs, tmp_path, case):
    model = load(make_model_folder("llama"), freeze_backbone=case == "frozen backbone")
    changes: dict[str, Any] = {"learning_rate": 1e-5}
    expected: float | None = None
    if case == "trained head":
        randomize_head(model)
    elif case == "own optimizer":
        changes["optimizers"] = (torch.optim.AdamW(model.parameters(), lr=1e-5), None)
    elif case == "other optimizer":
        changes["optim"] = "sgd"  # its step is the rate times the gradient
    elif case == "own rate":
        changes["head_learning_rate"] = expected = 3e-5
    elif case == "higher rate":
        changes["learning_rate"] = 1.0
    elif case == "zero":
        changes["learning_rate"] = 0.0
    trainer = make_trainer(model, chat_pairs[:8], tmp_path / "run", **changes)
    assert trainer.args.head_learning_rate == expected
    assert set(rates(trainer).values()) == {changes["learning_rate"], expected or changes["learning_rate"]}


def test_an_encoder_keeps_one_rate_because_its_head_is_random(make_model_folder, text_pairs, tmp_path):
    trainer = make_trainer(make_model_folder("bert"), text_pairs[:8], tmp_path / "run", learning_rate=1e-5)
    assert trainer.args.head_learning_rate is None


def test_the_first_step_moves_each_weight_of_the_head_by_its_rate(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"))
    before, width = weights(model), model.score.in_features
    trainer = make_trainer(
        model, chat_pairs[:8], tmp_path / "run", learning_rate=1e-5, max_steps=1, lr_scheduler_type="constant"
    )
    trainer.train()
    moved = {name: (value - before[name]).abs().max().item() for name, value in weights(trainer.model).items()}
    assert moved["score.weight"] == pytest.approx(STEP / width, rel=0.01)  # Adam's first step


def test_each_trial_of_a_search_gets_the_default_for_its_own_rate(make_model_folder, chat_pairs, tmp_path):
    folder = make_model_folder("llama")
    tokenizer = make_trainer(folder, chat_pairs[:8], tmp_path / "any").processing_tokenizer
    trainer = make_trainer(
        None, chat_pairs[:8], tmp_path / "run", model_init=lambda: load(folder), processing_class=tokenizer
    )
    width = load(folder).score.in_features
    for rate in (1e-5, 2 * STEP / width, 1e-6):  # as the search does it: new settings, then a new model
        trainer.args.learning_rate = rate
        trainer.call_model_init()
        assert trainer.args.head_learning_rate == (pytest.approx(STEP / width) if rate < STEP / width else None)
    trainer.args.head_learning_rate = 0.25
    trainer.call_model_init()
    assert trainer.args.head_learning_rate == 0.25


def test_a_run_that_started_with_one_rate_for_all_resumes_with_it(make_model_folder, chat_pairs, tmp_path):
    def trainer(folder: str, **changes: Any) -> Any:
        options = {"learning_rate": 1e-5, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, **changes}
        return make_trainer(make_model_folder("llama"), chat_pairs[:8], tmp_path / folder, **options)

    undisturbed = trainer("undisturbed", head_learning_rate=1e-5)
    undisturbed.args.head_learning_rate = None  # as in earlier versions: one rate, and no group for the head
    undisturbed.train()
    resumed = trainer("resumed")
    assert resumed.args.head_learning_rate > 1e-5
    resumed.train(resume_from_checkpoint=str(tmp_path / "undisturbed" / "checkpoint-2"))
    assert resumed.args.head_learning_rate is None
    assert largest_difference(weights(resumed.model), weights(undisturbed.model)) == 0


def test_a_run_with_the_default_learns_where_one_rate_for_all_does_not(make_model_folder, chat_pairs, tmp_path):
    losses = {}
    for name, rate in (("default", None), ("one rate", 1e-5)):
        trainer = make_trainer(
            make_model_folder("llama"), chat_pairs[:8], tmp_path / name, learning_rate=1e-5, max_steps=30,
            head_learning_rate=rate, lr_scheduler_type="constant", seed=0,
        )  # fmt: skip
        trainer.train()
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    assert losses["one rate"] == pytest.approx(math.log(2), abs=0.01)
    assert losses["default"] < 0.6
