"""The length correlation penalty: hand-computed values, edge cases and training runs."""

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize_head
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from training_runs import load, losses, make_trainer
from training_runs import settings as config

from hf_reward import PreferenceLoss
from hf_reward.losses.functions import bradley_terry_loss, length_correlation_penalty

PAD = -100
RANKS = torch.tensor([[0, 1], [1, 0], [0, PAD]])
REWARDS = torch.tensor([[1.0, 3.0], [2.0, -1.0], [0.5, 7.0]])
LENGTHS = torch.tensor([[4, 9], [12, 1], [3, PAD]])


def leaf(values: Any) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


# --- the function ---


def test_the_penalty_by_hand():
    """Means 7/3 and 2, covariance sum 3, squares 42/9 and 2: 3 / sqrt(84 / 9). Padding is ignored."""
    rewards, ranks = torch.tensor([[1.0, 2.0], [4.0, 50.0]]), torch.tensor([[0, 1], [0, PAD]])
    found = length_correlation_penalty(rewards, torch.tensor([[1, 2], [3, PAD]]), ranks)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(3 / math.sqrt(84 / 9), rel=1e-6)
    assert length_correlation_penalty(-rewards, torch.tensor([[1, 2], [3, PAD]]), ranks).item() == pytest.approx(
        found.item()
    )


def test_the_penalty_is_numpys_correlation():
    present = RANKS != PAD
    expected = np.corrcoef(REWARDS[present].numpy(), LENGTHS[present].numpy())[0, 1]
    assert length_correlation_penalty(REWARDS, LENGTHS, RANKS).item() == pytest.approx(abs(expected), rel=1e-6)


@given(scale=st.floats(0.01, 1e6), shift=st.floats(-1e3, 1e3), sign=st.sampled_from([1, -1]))
@settings(max_examples=25, deadline=None)
def test_scale_and_shift_of_lengths_and_rewards_change_nothing(scale, shift, sign):
    plain = length_correlation_penalty(REWARDS, LENGTHS, RANKS)
    scaled = LENGTHS.double() * scale * sign + shift * scale
    assert_close(length_correlation_penalty(REWARDS, scaled, RANKS), plain, rtol=1e-2, atol=1e-3)
    assert_close(length_correlation_penalty(REWARDS * scale * sign, LENGTHS, RANKS), plain, rtol=1e-4, atol=1e-5)


def test_position_of_padding_and_order_of_groups_change_nothing():
    wide = torch.full((3, 4), PAD)
    ranks, lengths, rewards = wide.clone(), wide.clone(), torch.full((3, 4), 99.0)
    for group, places in enumerate([(1, 3), (0, 2), (3, 0)]):
        for place, target in enumerate(places):
            ranks[group, target], lengths[group, target] = RANKS[group, place], LENGTHS[group, place]
            rewards[group, target] = REWARDS[group, place]
    order = torch.tensor([2, 0, 1])
    found = length_correlation_penalty(rewards[order], lengths[order], ranks[order])
    assert_close(found, length_correlation_penalty(REWARDS, LENGTHS, RANKS))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_against_the_gradient_makes_the_correlation_weaker(sign):
    rewards = leaf((sign * torch.tensor([[1.0, 2.0], [4.0, 3.0], [0.0, 1.5]])).tolist())
    lengths, ranks = torch.tensor([[1, 2], [9, 5], [1, 4]]), torch.zeros(3, 2, dtype=torch.long)
    before = length_correlation_penalty(rewards, lengths, ranks)
    before.backward()
    assert rewards.grad is not None
    assert abs(rewards.grad.sum().item()) < 1e-6, "a constant changes no correlation"
    assert sign * rewards.grad[1, 0] > 0, "the reward of the longest response moves towards the others"
    after = length_correlation_penalty(rewards.detach() - 2 * rewards.grad, lengths, ranks)
    assert after < before - 0.01


@pytest.mark.parametrize(
    ("rewards", "lengths", "ranks"),
    [
        ([[0.1, 0.1], [0.1, 0.1]], [[1, 2], [3, 4]], [[0, 1], [0, 1]]),
        ([[1.0, 2.0], [3.0, 4.0]], [[7, 7], [7, 7]], [[0, 1], [0, 1]]),
        ([[1.0, 2.0]], [[3, 4]], [[0, 1]]),
        ([[1.0, 2.0]], [[PAD, PAD]], [[PAD, PAD]]),
    ],
    ids=["equal rewards", "equal lengths", "one pair", "only padding"],
)
def test_an_undefined_correlation_has_value_and_gradient_zero(rewards, lengths, ranks):
    values = leaf(rewards)
    found = length_correlation_penalty(values, torch.tensor(lengths), torch.tensor(ranks))
    found.backward()
    assert found.item() == 0
    assert values.grad is not None
    assert not values.grad.any()


@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e30])
def test_rewards_of_any_size_are_safe(size):
    values = leaf((REWARDS * size).tolist())
    found = length_correlation_penalty(values, LENGTHS, RANKS)
    found.backward()
    assert_close(found.detach(), length_correlation_penalty(REWARDS, LENGTHS, RANKS), rtol=1e-4, atol=1e-5)
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_half_precision_is_computed_in_float32():
    found = length_correlation_penalty(REWARDS.bfloat16(), LENGTHS, RANKS)
    assert found.dtype == torch.float32
    assert_close(found, length_correlation_penalty(REWARDS, LENGTHS, RANKS), rtol=1e-2, atol=1e-2)


def test_shapes_have_to_agree():
    with pytest.raises(ValueError, match=r"`rewards` and `lengths` must have the same shape.*\(3, 2\) and \(2, 2\)"):
        length_correlation_penalty(REWARDS, LENGTHS[:2], RANKS)


# --- in the loss ---


def test_the_loss_adds_the_penalty_once_for_a_batch():
    weights = torch.tensor([1.0, 3.0, 1.0])
    found = PreferenceLoss(length_penalty=0.5)(REWARDS, RANKS, weights=weights, lengths=LENGTHS)
    plain = PreferenceLoss()(REWARDS, RANKS, weights=weights)
    assert_close(found, plain + 0.5 * length_correlation_penalty(REWARDS, LENGTHS, RANKS))


def test_parts_of_a_batch_add_up_to_the_weighted_mean_of_their_penalties():
    ranks, rewards = torch.tensor([[0, 1]] * 6), torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    lengths, weights = torch.arange(12).view(6, 2) ** 2 % 17, torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 4.0])
    loss = PreferenceLoss(length_penalty=2.0)
    parts = [slice(0, 2), slice(2, 6)]
    found = sum(
        loss(rewards[p], ranks[p], weights=weights[p], normalizer=weights.sum(), lengths=lengths[p]) for p in parts
    )
    penalties = [length_correlation_penalty(rewards[p], lengths[p], ranks[p]) for p in parts]
    plain = PreferenceLoss()(rewards, ranks, weights=weights)
    assert_close(found, plain + 2.0 * (0.3 * penalties[0] + 0.7 * penalties[1]))


@pytest.mark.parametrize("neutral", [None, 0.0])
def test_a_penalty_of_weight_zero_gives_the_plain_loss_exactly(neutral):
    one, other = leaf(REWARDS.tolist()), leaf(REWARDS.tolist())
    found = PreferenceLoss(length_penalty=neutral)(one, RANKS, lengths=LENGTHS)
    plain = bradley_terry_loss(other, RANKS)[:2].mean()
    assert torch.equal(found, plain)
    assert torch.equal(*(torch.autograd.grad(each, values)[0] for each, values in ((found, one), (plain, other))))


def test_missing_lengths_and_wrong_weights_are_refused():
    with pytest.raises(ValueError, match=r"`length_penalty` requires the `lengths`.*collator"):
        PreferenceLoss(length_penalty=1.0)(REWARDS, RANKS)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"`length_penalty` must be .*0 or more.*to disable it"):
            PreferenceLoss(length_penalty=wrong)


def test_settings_name_penalties_that_are_on():
    assert PreferenceLoss().settings == {"loss_type": "bradley_terry", "label_smoothing": 0.0}
    both = PreferenceLoss(loss_type="hinge", center_rewards_coefficient=0.1, length_penalty=2.0)
    assert both.settings == {"loss_type": "hinge", "center_rewards_coefficient": 0.1, "length_penalty": 2.0}
    assert both.of_preferences == PreferenceLoss(loss_type="hinge", center_rewards_coefficient=0.1)


# --- in runs ---


def longer_is_better(count: int = 64, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs whose preferred response is longer, with lengths that vary over rows."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        short, long = sorted(random.choice(np.arange(1, 25), 2, replace=False))
        words = [" ".join(random.choice(["the", "yes", "water", "is", "no"], size)) for size in (short, long)]
        rows.append({"prompt": f"Say {number}: ", "chosen": words[1], "rejected": words[0]})
    return rows


def correlation(trainer: Any, rows: Any) -> float:
    """|correlation| of reward and length over the rows."""
    found = trainer.predict(rows)
    return abs(np.corrcoef(found.predictions.ravel(), found.label_ids[1].ravel())[0, 1])


def test_training_with_the_penalty_weakens_the_correlation_with_length(make_model_folder, tmp_path):
    folder, rows = make_model_folder("llama"), longer_is_better()
    found = {}
    for weight in (None, 5.0):
        trainer = make_trainer(
            folder, rows, tmp_path / "run", length_penalty=weight, learning_rate=5e-3, num_train_epochs=6,
            per_device_train_batch_size=16, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer.train()
        found[weight] = correlation(trainer, rows)
    assert found[None] > 0.7
    assert found[5.0] < 0.5 * found[None]


@pytest.mark.parametrize("form", [{"packing": "false"}, {"cache_features": "true"}], ids=str)
def test_every_form_of_a_batch_has_the_same_penalty(make_model_folder, tmp_path, form):
    folder, rows, found = make_model_folder("llama"), longer_is_better(16), []
    for changes in ({}, form):
        model = load(folder, freeze_backbone=True)
        randomize_head(model)
        changes = {"cache_features": "false", **changes}
        trainer = make_trainer(model, rows, tmp_path / "run", length_penalty=3.0, learning_rate=0.1, **changes)
        trainer.train()
        found.append(losses(trainer))
    assert len(found[0]) == 2
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_the_evaluation_loss_and_the_rows_of_a_batch(make_model_folder, tmp_path):
    """Evaluation reports only the preference loss; a batch is drawn from rows of all lengths."""
    folder, rows, found = make_model_folder("llama"), longer_is_better(16), {}
    for weight in (None, 3.0):
        model = load(folder)
        randomize_head(model)
        trainer = make_trainer(
            model, rows, tmp_path / "run", evaluation=rows, packing="false", length_penalty=weight, max_steps=1
        )
        found[weight] = trainer.evaluate()["eval_loss"]
        trainer.get_train_dataloader()
        assert (trainer.loader.epoch_sampler is None) is (weight is not None)
    assert found[3.0] == found[None]


def test_record_and_card_name_the_penalty(make_model_folder, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), longer_is_better(16), tmp_path / "run", length_penalty=2.0, max_steps=1
    )
    trainer.train()
    trainer.save_model()
    record = json.loads((tmp_path / "run" / "reward_config.json").read_text())
    assert record["loss"] == {"loss_type": "bradley_terry", "label_smoothing": 0.0, "length_penalty": 2.0}
    assert "length_penalty" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"gradient_accumulation_steps": 4},
            ["batch 8 is not equal to batch 2 x accumulation 4", "each of the 4 parts"],
        ),
        ({"per_device_train_batch_size": 4}, ["over 4 rows at a time"]),
        ({}, []),
        ({"gradient_accumulation_steps": 4, "length_penalty": None}, []),
    ],
    ids=str,
)
def test_a_correlation_over_few_rows_is_logged_once(make_model_folder, tmp_path, caplog, changes, words):
    with caplog.at_level(logging.WARNING, logger="hf_reward"):
        make_trainer(
            make_model_folder("llama"), longer_is_better(16), tmp_path / "run", **{"length_penalty": 1.0, **changes}
        )
    message = [record.getMessage() for record in caplog.records if "length_penalty" in record.getMessage()]
    assert len(message) == bool(words)
    assert all(word in message[0] for word in words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 1}, "at least two rows.*is 1; raise it"),
        ({"max_tokens_per_batch": 100}, "`max_tokens_per_batch=100`.*Set one of them"),
        ({"length_bucketing": True}, "rows of all lengths"),
        ({"train_sampling_strategy": "group_by_length"}, "rows of all lengths"),
        ({"length_penalty": -1.0}, "`length_penalty` must be .* but is -1.0"),
    ],
    ids=str,
)
def test_settings_that_conflict_with_the_penalty_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **{"length_penalty": 1.0, **changes})
    if "length_penalty" not in changes:
        config(tmp_path, length_penalty=0.0, **changes)
