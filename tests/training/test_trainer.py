"""A training step: loss and gradient; runs repeat and resume exactly."""

import math
from typing import Any

import pytest
import torch
from conftest import randomize_head
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from training_runs import largest_difference, load, losses, make_trainer, settings, weights
from transformers import AutoModelForSequenceClassification, TrainerCallback

from hf_reward import RewardTrainer


def ranked_lists(count: int = 8) -> list[dict[str, Any]]:
    """Return lists of two to four responses with different weights."""
    words = ["brief", "rather longer words", "the longest answer of all of them", "middling text"]
    rows = []
    for number in range(count):
        size = 2 + number % 3
        ranks = [(place + number) % size for place in range(size)]
        responses = [f"{words[place]} {number * place}" for place in range(size)]
        rows.append(
            {"prompt": f"Say {number}: ", "responses": responses, "ranks": ranks, "weight": 0.5 + number % 3}
        )  # fmt: skip
    return rows


def with_ties(count: int = 8) -> list[dict[str, Any]]:
    """Return pairs; every third one is a tie."""
    rows = [{**row, "responses": row["responses"][:2], "weight": 1.0} for row in ranked_lists(count)]
    return [{**row, "ranks": [0, 0] if place % 3 == 2 else [0, 1]} for place, row in enumerate(rows)]


def alone(model: Any, ids: list[int]) -> float:
    """Return the reward of one unpadded sequence."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.item()


class Rates(TrainerCallback):
    """Records the learning rates of every optimizer group at each step."""

    def __init__(self) -> None:
        self.seen: list[set[float]] = []

    def on_pre_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        self.seen.append({group["lr"] for group in optimizer.param_groups if group["params"]})


# --- the loss ---


@pytest.mark.parametrize("packing", ["auto", "false"])
def test_the_loss_of_a_batch_is_the_formula_applied_to_rewards_scored_one_by_one(
    make_model_folder, chat_pairs, tmp_path, packing
):
    rows = [{**row, "margin": 0.1 * place, "weight": 1.0 + place} for place, row in enumerate(chat_pairs[:4])]
    model = load(make_model_folder("llama"))
    randomize_head(model)
    trainer = make_trainer(
        model, rows, tmp_path / "run", label_smoothing=0.1, center_rewards_coefficient=0.01, max_steps=1,
        train_sampling_strategy="sequential", packing=packing,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    found = trainer.compute_loss(trainer.model.eval(), batch)

    total = 0.0
    for row, ids in zip(rows, trainer.train_dataset["input_ids"], strict=True):
        better, worse = (alone(model, sequence) for sequence in ids)
        gap = torch.tensor(better - worse - row["margin"])
        value = -0.9 * logsigmoid(gap) - 0.1 * logsigmoid(-gap) + 0.01 * (better + worse) ** 2
        total += row["weight"] * float(value)
    assert found.item() == pytest.approx(total / 10, abs=1e-5)
    assert abs(found.item() - math.log(2)) > 0.05  # rewards are not all zero


def test_compute_loss_can_return_the_rewards_in_the_layout_of_the_ranks(make_model_folder, tmp_path):
    model = load(make_model_folder("llama"))
    randomize_head(model)
    trainer = make_trainer(model, ranked_lists(), tmp_path / "run")
    batch = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert outputs["rewards"].shape == batch["ranks"].shape == (8, 4)
    assert loss.dtype == outputs["rewards"].dtype == torch.float32
    assert (outputs["rewards"][batch["ranks"] == -100] == 0).all()


def test_training_starts_at_ln_2_and_the_first_gradient_reaches_only_the_head(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(make_model_folder("llama"), chat_pairs, tmp_path / "run")
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.create_optimizer_and_scheduler(2)
    _, weight = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert weight == 8
    loss = trainer.training_step(trainer.model, batch, weight)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    moved = {
        name
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }
    assert moved == {"score.weight"}


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_sixteen_pairs_of_arbitrary_direction_are_memorised(make_model_folder, text_pairs, tmp_path, arch):
    swapped = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt"}
    rows = [
        {swapped[name]: text for name, text in row.items()} if number in (1, 2, 5, 8, 12, 13, 15) else row
        for number, row in enumerate(text_pairs)
    ]
    trainer = make_trainer(
        make_model_folder(arch), rows, tmp_path / "run", evaluation=rows, num_train_epochs=40, learning_rate=4e-3,
        logging_steps=20,
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == 1.0
    assert metrics["eval_log_loss"] < 0.1
    assert trainer.history[-1]["epoch_accuracy"] == 1.0


KINDS = {
    "bradley_terry": ({}, lambda pairs: pairs),
    "margins": ({}, lambda pairs: [{**row, "margin": 0.5 + place % 3} for place, row in enumerate(pairs)]),
    "weights": ({}, lambda pairs: [{**row, "weight": 0.1 + place % 4} for place, row in enumerate(pairs)]),
    "soft labels": ({}, lambda pairs: [{**row, "probability": 0.6 + 0.02 * k} for k, row in enumerate(pairs)]),
    "label smoothing": ({"label_smoothing": 0.2}, lambda pairs: pairs),
    "centering": ({"center_rewards_coefficient": 0.05}, lambda pairs: pairs),
    "hinge": ({"loss_type": "hinge"}, lambda pairs: [{**row, "margin": 0.5} for row in pairs]),
    "davidson": ({"loss_type": "davidson", "tie_parameter": 0.5}, lambda pairs: with_ties()),
    "rao_kupper": ({"loss_type": "rao_kupper"}, lambda pairs: with_ties()),
    "lists": ({}, lambda pairs: ranked_lists()),
    "plackett_luce": ({"loss_type": "plackett_luce"}, lambda pairs: ranked_lists()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_is_lowered_by_training(make_model_folder, text_pairs, tmp_path, kind):
    changes, rows = KINDS[kind][0], KINDS[kind][1](text_pairs[:8])
    model = load(make_model_folder("llama"))
    randomize_head(model)
    trainer = make_trainer(
        model, rows, tmp_path / "run", evaluation=rows, learning_rate=3e-3, num_train_epochs=12, **changes
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.9 * before
    assert trainer.record().loss["loss_type"] == changes.get("loss_type", "bradley_terry")


@pytest.mark.parametrize("loss_type", ["davidson", "rao_kupper", "plackett_luce"])
@pytest.mark.parametrize("column", ["margin", "probability"])
def test_columns_that_the_loss_cannot_use_are_refused_by_name(
    make_model_folder, text_pairs, tmp_path, loss_type, column
):
    rows = [{**row, column: 0.7} for row in text_pairs]
    with pytest.raises(ValueError, match=rf"`{column}`, which loss_type='{loss_type}' cannot use"):
        make_trainer(make_model_folder("llama"), rows, tmp_path / "run", loss_type=loss_type).train()


# --- optimizer ---


def test_the_head_has_its_own_learning_rate_and_both_follow_the_schedule(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"))
    randomize_head(model)
    before, rates = weights(model), Rates()
    trainer = make_trainer(
        model, chat_pairs[:8], tmp_path / "run", learning_rate=1e-4, head_learning_rate=1e-2, callbacks=[rates],
        max_steps=1, lr_scheduler_type="linear",
    )  # fmt: skip
    trainer.train()
    moved = {name: (value - before[name]).abs().max().item() for name, value in weights(trainer.model).items()}
    # The first step of Adam moves each weight by its learning rate.
    assert moved.pop("score.weight") == pytest.approx(1e-2, rel=0.01)
    assert max(moved.values()) == pytest.approx(1e-4, rel=0.01)

    trainer = make_trainer(
        model, chat_pairs[:8], tmp_path / "run", learning_rate=1e-4, head_learning_rate=1e-2, callbacks=[rates],
        max_steps=4, lr_scheduler_type="linear",
    )  # fmt: skip
    trainer.train()
    for step, seen in enumerate(rates.seen[1:]):
        assert sorted(seen) == pytest.approx([1e-4 * (1 - step / 4), 1e-2 * (1 - step / 4)])


def test_a_second_call_of_train_keeps_one_group_for_the_head(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs[:8], tmp_path / "run", max_steps=1, head_learning_rate=1e-2
    )
    trainer.train()
    groups = [len(group["params"]) for group in trainer.optimizer.param_groups]
    trainer.train()
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == groups
    assert groups.count(1) == 1


def test_a_frozen_backbone_trains_its_head_with_the_head_learning_rate(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"), freeze_backbone=True)
    before = weights(model)
    trainer = make_trainer(model, chat_pairs[:8], tmp_path / "run", max_steps=2, head_learning_rate=1e-2)
    trainer.train()
    changed = {name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])}
    assert changed == {"score.weight"}


def test_a_custom_optimizer_with_a_head_learning_rate_is_refused(make_model_folder, chat_pairs, tmp_path):
    model = load(make_model_folder("llama"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="head_learning_rate"):
        make_trainer(
            model, chat_pairs, tmp_path / "run", optimizers=(optimizer, None), head_learning_rate=1e-2, max_steps=1
        )


# --- batches, repetition, resuming ---

SPLITS = {
    "pairs": (lambda pairs: pairs[:8], {}),
    "weighted pairs with margins": (
        lambda pairs: [{**row, "margin": 0.2, "weight": 0.5 + k % 3} for k, row in enumerate(pairs[:8])],
        {},
    ),
    "ragged weighted lists": (lambda pairs: ranked_lists(), {}),
    "ragged lists, plackett_luce": (lambda pairs: ranked_lists(), {"loss_type": "plackett_luce"}),
    "ties and centering": (
        lambda pairs: with_ties(),
        {"loss_type": "davidson", "center_rewards_coefficient": 0.1},
    ),
    "an incomplete last batch": (lambda pairs: ranked_lists(6), {}),
}


@pytest.mark.parametrize("name", SPLITS)
def test_one_step_of_eight_rows_equals_four_accumulated_steps_of_two(make_model_folder, text_pairs, tmp_path, name):
    make_rows, changes = SPLITS[name]
    folder, results = make_model_folder("llama"), []
    for size, parts in ((8, 1), (2, 4)):
        model = load(folder)
        randomize_head(model)
        before = weights(model)
        trainer = make_trainer(
            model, make_rows(text_pairs), tmp_path / "run", per_device_train_batch_size=size, max_steps=1,
            gradient_accumulation_steps=parts, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, **changes,
        )  # fmt: skip
        trainer.train()
        results.append((weights(trainer.model), losses(trainer)[0]))
        assert largest_difference(before, results[-1][0]) > 1e-3
    assert largest_difference(results[0][0], results[1][0]) < 1e-6
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


def test_the_same_seed_gives_bitwise_equal_losses(make_model_folder, chat_pairs, tmp_path):
    folder = make_model_folder("llama")

    def run(seed: int) -> list[float]:
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
        trainer = make_trainer(
            folder, chat_pairs, tmp_path / "run", seed=seed, max_steps=4, per_device_train_batch_size=4,
            learning_rate=1e-2, peft_config=config,
        )  # fmt: skip
        trainer.train()
        return losses(trainer)

    first = run(3)
    assert run(3) == first
    assert run(4)[1:] != first[1:]


@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(make_model_folder, chat_pairs, tmp_path, adapter):
    folder = make_model_folder("llama")

    def trainer() -> RewardTrainer:
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
        return make_trainer(
            folder, chat_pairs, tmp_path / "run", max_steps=7, per_device_train_batch_size=4, learning_rate=1e-2,
            save_strategy="steps", save_steps=3, head_learning_rate=2e-2, peft_config=config if adapter else None,
        )  # fmt: skip

    complete = trainer()
    complete.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))  # inside the first epoch
    assert resumed.state.global_step == 7
    for name, value in weights(complete.model).items():
        assert torch.equal(value, dict(resumed.model.named_parameters())[name]), name
    assert losses(resumed) == losses(complete)


def test_a_saved_model_gives_the_same_rewards_in_stock_transformers(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("qwen3"), chat_pairs, tmp_path / "run", max_steps=4, learning_rate=1e-2,
        evaluation=chat_pairs[:4],
    )  # fmt: skip
    trainer.train()
    rewards = trainer.predict(trainer.eval_dataset).predictions
    trainer.save_model(str(tmp_path / "saved"))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    for row, ids in enumerate(trainer.eval_dataset["input_ids"]):
        for place, sequence in enumerate(ids):
            reward = rewards[row, place]
            assert alone(stock, sequence) == pytest.approx(reward, abs=1e-5 * max(1.0, abs(float(reward))))
    assert rewards.std() > 0.01


# --- arguments of the caller ------------------------------------------------------------------------------------------


def test_arguments_are_not_changed(make_model_folder, chat_pairs, chat_tokenizer, tmp_path):
    args = settings(tmp_path / "run", max_steps=1)
    peft_config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    data = Dataset.from_list(chat_pairs)
    before = (args.to_dict(), peft_config.to_dict(), data.to_list(), len(chat_tokenizer), chat_tokenizer.pad_token)
    trainer = RewardTrainer(
        model=str(make_model_folder("llama")), args=args, train_dataset=data, processing_class=chat_tokenizer,
        peft_config=peft_config,
    )  # fmt: skip
    trainer.train()
    after = (args.to_dict(), peft_config.to_dict(), data.to_list(), len(chat_tokenizer), chat_tokenizer.pad_token)
    assert after == before
    assert trainer.processing_class.pad_token != chat_tokenizer.pad_token  # the trainer needs a different pad token


def test_settings_are_not_changed_by_a_stream(make_model_folder, chat_pairs, tmp_path):
    args = settings(tmp_path / "run", max_steps=1)
    before = (args.accelerator_config.dispatch_batches, args.to_dict())
    stream = Dataset.from_list(chat_pairs).to_iterable_dataset()
    trainer = RewardTrainer(model=str(make_model_folder("llama")), args=args, train_dataset=stream)
    assert trainer.args.accelerator_config.dispatch_batches is False
    trainer.args.learning_rate = 7.0  # like a hyperparameter search
    assert (args.accelerator_config.dispatch_batches, args.to_dict()) == before
