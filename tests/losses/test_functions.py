"""Losses: hand-computed values, equivalences, invariances, gradients and refused input."""

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hf_reward.losses.functions import (
    bradley_terry_loss,
    centering_penalty,
    davidson_loss,
    group_weights,
    hinge_loss,
    plackett_luce_loss,
    rao_kupper_loss,
    strict_pairs,
    tied_pairs,
)
from hf_reward.losses.preference_loss import LOSSES, PreferenceLoss

PAD = -100
WITH_TIES = ("rao_kupper", "davidson")
quick = settings(max_examples=15, deadline=None)


def double(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def by_name(name: str) -> Callable[..., Tensor]:
    """Return the loss function with its default settings, per group."""
    options = PreferenceLoss(loss_type=name).options
    return lambda rewards, ranks: LOSSES[name].function(rewards, ranks, **options)


@st.composite
def batches(draw: st.DrawFn, *, ties: bool = True, min_present: int = 0) -> tuple[Tensor, Tensor]:
    """Rewards and ranks (G, K), padded with -100 at random positions."""
    num_groups, width = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    ranks = []
    for _ in range(num_groups):
        present = draw(st.integers(min_present, width))
        ranking = draw(st.lists(st.integers(0, 3), min_size=present, max_size=present)) if ties else range(present)
        ranks.append(draw(st.permutations([*ranking, *[PAD] * (width - present)])))
    size = num_groups * width
    values = draw(st.lists(st.floats(-8, 8, width=32), min_size=size, max_size=size))
    return torch.tensor(values, dtype=torch.float64).view(num_groups, width), torch.tensor(ranks)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_bradley_terry_of_one_pair_is_the_negative_log_sigmoid_of_its_gap():
    """Rewards 1.5 and 0.5, first preferred: -ln(1 / (1 + e^-1)) = ln(1 + 0.367879) = 0.313262."""
    assert bradley_terry_loss(double([1.5, 0.5]), torch.tensor([[0, 1]])).item() == pytest.approx(0.313262, abs=1e-6)


def test_bradley_terry_of_equal_rewards_is_ln_2():
    assert bradley_terry_loss(double([3.0, 3.0]), torch.tensor([[1, 0]])).item() == pytest.approx(math.log(2))


def test_a_margin_is_subtracted_from_the_gap():
    """Gap 1, margin 2: z = -1, so ln(1 + e) = ln 3.718282 = 1.313262."""
    loss = bradley_terry_loss(double([1.5, 0.5]), torch.tensor([[0, 1]]), torch.tensor([2.0]))
    assert loss.item() == pytest.approx(1.313262, abs=1e-6)


def test_label_smoothing_mixes_both_outcomes():
    """z = 1, smoothing 0.1: 0.9 * 0.313262 + 0.1 * 1.313262 = 0.281936 + 0.131326 = 0.413262."""
    loss = bradley_terry_loss(double([1.5, 0.5]), torch.tensor([[0, 1]]), label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.413262, abs=1e-6)


def test_a_stated_probability_is_a_soft_target_for_the_first_response():
    """z = 1, p = 0.25: 0.25 * 0.313262 + 0.75 * 1.313262 = 0.078316 + 0.984946 = 1.063262."""
    loss = bradley_terry_loss(double([1.5, 0.5]), torch.tensor([[1, 0]]), probabilities=torch.tensor([0.25]))
    assert loss.item() == pytest.approx(1.063262, abs=1e-6)


def test_a_stated_probability_is_smoothed_towards_a_half():
    """z = 1, p = 0.25, smoothing 0.1: t = 0.25 * 0.8 + 0.1 = 0.3; 0.3 * 0.313262 + 0.7 * 1.313262 = 1.013262."""
    loss = bradley_terry_loss(
        double([1.5, 0.5]), torch.tensor([[0, 1]]), probabilities=torch.tensor([0.25]), label_smoothing=0.1
    )
    assert loss.item() == pytest.approx(1.013262, abs=1e-6)


def test_the_margin_of_a_soft_row_applies_to_the_likelier_side():
    """Gap 1, margin 2: z = -1 at p = 1 costs 1.313262; z = 1 + 2 at p = 0 costs ln(1 + e^3) = 3.048587."""
    rewards, ranks = double([1.5, 0.5], [1.5, 0.5], [1.5, 0.5]), torch.tensor([[0, 1], [1, 0], [0, 0]])
    loss = bradley_terry_loss(rewards, ranks, torch.tensor([2.0] * 3), torch.tensor([1.0, 0.0, 0.5]))
    # At p = 0.5 the margin has no effect: (0.313262 + 1.313262) / 2.
    assert loss.tolist() == pytest.approx([1.313262, 3.048587, 0.813262], abs=1e-6)
    hard = bradley_terry_loss(rewards, ranks, torch.tensor([2.0] * 3))
    assert loss[:2].tolist() == pytest.approx(hard[:2].tolist())


def test_hinge_is_the_shortfall_from_one_plus_the_margin():
    """Leads 0.25, 3 and 3 with margin 2.5: 1 - 0.25 = 0.75; 0; 1 + 2.5 - 3 = 0.5."""
    rewards, ranks = double([0.25, 0.0], [3.0, 0.0], [0.0, 3.0]), torch.tensor([[0, 1], [0, 1], [1, 0]])
    assert hinge_loss(rewards, ranks, torch.tensor([0.0, 0.0, 2.5])).tolist() == [0.75, 0.0, 0.5]


def test_rao_kupper_of_a_win_and_of_a_tie():
    """theta = 2, gap 1: P(win) = e / (e + 2) = 0.576117, P(loss) = 1 / (1 + 2e) = 0.155362, P(tie) = 0.268521.

    -ln: 0.551445, and 1.314825 for the tie.
    """
    loss = rao_kupper_loss(double([1.0, 0.0], [1.0, 0.0]), torch.tensor([[0, 1], [0, 0]]), tie_parameter=2.0)
    assert loss.tolist() == pytest.approx([0.551445, 1.314825], abs=1e-5)


def test_davidson_of_a_win_and_of_a_tie():
    """nu = 1, rewards 2 and 0: Z = e^2 + 1 + e = 7.389056 + 1 + 2.718282 = 11.107338.

    -ln(7.389056 / Z) = 0.407606; -ln(2.718282 / Z) = 1.407606.
    """
    loss = davidson_loss(double([2.0, 0.0], [2.0, 0.0]), torch.tensor([[0, 1], [0, 0]]), tie_parameter=1.0)
    assert loss.tolist() == pytest.approx([0.407606, 1.407606], abs=1e-6)


@pytest.mark.parametrize(("name", "at_equal_rewards"), [("rao_kupper", 1 / 3), ("davidson", 1 / 3)])
def test_the_tie_probability_of_equal_rewards_is_as_documented(name: str, at_equal_rewards: float):
    """Rao-Kupper at theta 2: (2 - 1) / (2 + 1); Davidson at nu 1: 1 / (2 + 1)."""
    loss = by_name(name)(double([0.7, 0.7]), torch.tensor([[0, 0]]))
    assert math.exp(-loss.item()) == pytest.approx(at_equal_rewards)


@pytest.mark.parametrize("name", WITH_TIES)
@pytest.mark.parametrize("tie_parameter", [1.01, 2.0, 5.0])
@given(gap=st.floats(-20, 20))
@quick
def test_win_loss_and_tie_exhaust_the_outcomes(name: str, tie_parameter: float, gap: float):
    rewards = double([gap, 0.0]).expand(3, 2)
    outcomes = torch.tensor([[0, 1], [1, 0], [0, 0]])
    assert (-LOSSES[name].function(rewards, outcomes, tie_parameter=tie_parameter)).exp().sum().item() == pytest.approx(
        1
    )


def test_plackett_luce_of_three_multiplies_choice_by_choice():
    """Rewards 1, 2, 3 ranked second, first, last: order 2, 1, 3.

    e^2 / (e^2 + e + e^3) * e / (e + e^3) = 0.244728 * 0.119203; -ln = 1.407606 + 2.126928 = 3.534534.
    """
    loss = plackett_luce_loss(double([1.0, 2.0, 3.0]), torch.tensor([[1, 0, 2]]))
    assert loss.item() == pytest.approx(3.534534, abs=1e-6)


def test_centering_is_the_mean_square_of_pair_sums():
    """Rewards 1, 2, 4: ((1+2)^2 + (1+4)^2 + (2+4)^2) / 3 = (9 + 25 + 36) / 3 = 23.3333; a padded 4: 3^2 = 9."""
    penalty = centering_penalty(double([1, 2, 4], [1, 2, 4]), torch.tensor([[0, 1, 2], [0, 0, PAD]]))
    assert penalty.tolist() == pytest.approx([70 / 3, 9])


def test_the_total_loss_is_the_weighted_mean_over_groups_plus_centering():
    """Groups with z = 1 (0.313262) and z = -1 (1.313262), weights 3 and 1: 0.563262.

    Centering 0.01 with sums 2 and 1: (3 * 4 + 1 * 1) / 4 = 3.25, so 0.0325 more.
    """
    rewards, ranks = torch.tensor([[1.5, 0.5], [0.0, 1.0]]), torch.tensor([[0, 1], [0, 1]])
    weights = torch.tensor([3.0, 1.0])
    assert PreferenceLoss()(rewards, ranks, weights=weights).item() == pytest.approx(0.563262, abs=1e-6)
    centered = PreferenceLoss(center_rewards_coefficient=0.01)
    assert centered(rewards, ranks, weights=weights).item() == pytest.approx(0.595762, abs=1e-6)


# --- equivalences ----------------------------------------------------------------------------------------------------


@given(batch=batches(ties=False, min_present=2))
@quick
def test_bradley_terry_is_plackett_luce_and_binary_cross_entropy_on_pairs(batch: tuple[Tensor, Tensor]):
    rewards = batch[0][:, :2]
    ranks = torch.tensor([[0, 1], [1, 0]])[torch.arange(len(rewards)) % 2]
    gap = rewards[:, 0] - rewards[:, 1]
    first_wins = (ranks[:, 0] == 0).double()
    expected = binary_cross_entropy_with_logits(gap, first_wins, reduction="none")
    torch.testing.assert_close(bradley_terry_loss(rewards, ranks), expected)
    torch.testing.assert_close(plackett_luce_loss(rewards, ranks), expected)


@given(batch=batches())
@quick
def test_every_option_at_its_neutral_value_gives_the_plain_loss(batch: tuple[Tensor, Tensor]):
    rewards, ranks = batch
    plain = PreferenceLoss()(rewards, ranks)
    groups = len(rewards)
    neutral = PreferenceLoss(label_smoothing=0.0, center_rewards_coefficient=0.0)(
        rewards,
        ranks,
        margins=torch.zeros(groups),
        probabilities=torch.full((groups,), math.nan),
        weights=torch.ones(groups),
    )
    assert neutral.item() == plain.item()


def test_a_certain_probability_is_a_plain_preference():
    rewards, ranks = double([0.3, 1.2], [0.3, 1.2]), torch.tensor([[0, 1], [1, 0]])
    soft = bradley_terry_loss(rewards, torch.tensor([[0, 0], [0, 0]]), probabilities=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(soft, bradley_terry_loss(rewards, ranks))


@pytest.mark.parametrize(("name", "neutral"), [("davidson", 0.0), ("davidson", 1e-9), ("rao_kupper", 1.0)])
@given(batch=batches(ties=False))
@quick
def test_tie_models_become_bradley_terry_where_ties_are_impossible(
    name: str, neutral: float, batch: tuple[Tensor, Tensor]
):
    loss = LOSSES[name].function(*batch, tie_parameter=neutral)
    torch.testing.assert_close(loss, bradley_terry_loss(*batch), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "plackett_luce"])
@given(batch=batches())
@quick
def test_a_group_is_the_mean_over_its_pairs(name: str, batch: tuple[Tensor, Tensor]):
    """Each pair is computed separately, with Python loops instead of masks."""
    rewards, ranks = batch
    loss = by_name(name)
    for row, order, value in zip(rewards, ranks, loss(rewards, ranks), strict=True):
        pairs = [(i, j) for i, j in combinations(range(len(row)), 2) if order[i] != PAD and order[j] != PAD]
        pairs = [(i, j) for i, j in pairs if order[i] != order[j] or name in WITH_TIES]
        alone = [loss(row[[i, j]][None], order[[i, j]][None]).item() for i, j in pairs]
        assert value.item() == pytest.approx(sum(alone) / max(len(alone), 1))


@given(batch=batches())
@quick
def test_pairs_equal_those_of_a_loop(batch: tuple[Tensor, Tensor]):
    ranks = batch[1]
    strict, tied = strict_pairs(ranks), tied_pairs(ranks)
    for g, order in enumerate(ranks.tolist()):
        for i, a in enumerate(order):
            for j, b in enumerate(order):
                both = PAD not in (a, b)
                assert strict[g, i, j].item() == (both and a < b)
                assert tied[g, i, j].item() == (both and a == b and i < j)


# --- invariances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data(), constant=st.floats(-50, 50))
@quick
def test_a_constant_added_to_all_rewards_changes_nothing(name: str, data: st.DataObject, constant: float):
    rewards, ranks = data.draw(batches(ties=name != "plackett_luce"))
    torch.testing.assert_close(by_name(name)(rewards + constant, ranks), by_name(name)(rewards, ranks))


def test_a_constant_does_change_the_centering():
    loss = PreferenceLoss(center_rewards_coefficient=0.1)
    rewards, ranks = torch.tensor([[1.0, -1.0]]), torch.tensor([[0, 1]])
    assert loss(rewards + 1, ranks) - loss(rewards, ranks) == pytest.approx(0.1 * 4)


@pytest.mark.parametrize("name", LOSSES)
@given(data=st.data())
@quick
def test_order_of_groups_and_responses_and_padding_width_change_nothing(name: str, data: st.DataObject):
    rewards, ranks = data.draw(batches(ties=name != "plackett_luce"))
    groups = data.draw(st.permutations(range(rewards.shape[0])))
    places = data.draw(st.permutations(range(rewards.shape[1])))
    extra = data.draw(st.integers(0, 2))
    shuffled = torch.nn.functional.pad(rewards[groups][:, places], (0, extra), value=123.0)
    shuffled_ranks = torch.nn.functional.pad(ranks[groups][:, places], (0, extra), value=PAD)
    expected = by_name(name)(rewards, ranks)[groups]
    torch.testing.assert_close(by_name(name)(shuffled, shuffled_ranks), expected)
    torch.testing.assert_close(
        PreferenceLoss(loss_type=name)(shuffled, shuffled_ranks), PreferenceLoss(loss_type=name)(rewards, ranks)
    )


@given(
    gap=st.floats(-5, 5), probability=st.floats(0, 1), margin=st.floats(-2, 2), smoothing=st.sampled_from([0.0, 0.2])
)
@quick
def test_swapping_the_responses_of_a_soft_row_and_its_probability_changes_nothing(
    gap: float, probability: float, margin: float, smoothing: float
):
    rewards = double([gap, 0.0], [0.0, gap])
    probabilities = torch.tensor([probability, 1 - probability], dtype=torch.float64)
    losses = bradley_terry_loss(
        rewards, torch.tensor([[0, 1]] * 2), torch.tensor([margin] * 2), probabilities, label_smoothing=smoothing
    )
    assert losses[0].item() == pytest.approx(losses[1].item())


# --- weights and the normalizer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_eight_equals_two_micro_batches_of_four_with_the_same_normalizer(name: str):
    torch.manual_seed(0)
    rewards = torch.randn(8, 3, requires_grad=True)
    ranks = torch.tensor([[0, 1, 2], [1, 0, PAD], [2, 0, 1], [0, PAD, PAD]] * 2)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 0.0, 1.0])
    loss = PreferenceLoss(loss_type=name, center_rewards_coefficient=0.1)
    full = loss(rewards, ranks, weights=weights)
    (expected,) = torch.autograd.grad(full, rewards)
    normalizer = loss.weights(ranks, weights=weights).sum()
    assert normalizer == 7.5  # the two groups of one response have weight 0
    parts = [
        loss(rewards[part], ranks[part], weights=weights[part], normalizer=normalizer)
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(sum(parts), full)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), rewards)[0], expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_group_of_weight_zero_has_no_effect(name: str):
    rewards, ranks = torch.randn(3, 2, requires_grad=True), torch.tensor([[0, 1], [1, 0], [0, 1]])
    loss = PreferenceLoss(loss_type=name, center_rewards_coefficient=0.1)
    value = loss(rewards, ranks, weights=torch.tensor([1.0, 0.0, 1.0]))
    value.backward()
    torch.testing.assert_close(value, loss(rewards[[0, 2]], ranks[[0, 2]]))
    assert rewards.grad[1].tolist() == [0, 0]
    assert rewards.grad[0].abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_group_without_preference_is_neither_counted_nor_centered(name: str):
    rewards = torch.tensor([[1.0, 0.0], [5.0, 7.0]])
    loss = PreferenceLoss(loss_type=name, center_rewards_coefficient=0.1)
    silent = [PAD, 0] if name in (*WITH_TIES, "plackett_luce") else [0, 0]
    assert loss(rewards, torch.tensor([[0, 1], silent])) == loss(rewards[:1], torch.tensor([[0, 1]]))


def test_a_batch_without_any_preference_has_loss_and_gradient_zero():
    rewards = torch.tensor([[1.0, 2.0]], requires_grad=True)
    loss = PreferenceLoss()(rewards, torch.tensor([[0, 0]]))
    loss.backward()
    assert loss.item() == 0
    assert rewards.grad.tolist() == [[0, 0]]


def test_a_normalizer_of_zero_or_a_plain_number_is_accepted():
    rewards, ranks = torch.tensor([[1.5, 0.5]]), torch.tensor([[0, 1]])
    assert PreferenceLoss()(rewards, ranks, normalizer=2).item() == pytest.approx(0.313262 / 2, abs=1e-6)
    assert PreferenceLoss()(rewards, torch.tensor([[0, 0]]), normalizer=0).item() == 0


def test_weights_count_ties_and_probabilities_only_where_the_loss_can_use_them():
    ranks, weights = torch.tensor([[0, 1], [0, 0], [0, PAD], [0, 0]]), torch.tensor([2.0, 3.0, 5.0, 7.0])
    probabilities = torch.tensor([math.nan, math.nan, math.nan, 0.6])
    assert group_weights(ranks, weights=weights).tolist() == [2, 0, 0, 0]
    assert group_weights(ranks, weights=weights, models_ties=True).tolist() == [2, 3, 0, 7]
    assert group_weights(ranks, probabilities, weights).tolist() == [2, 0, 0, 7]
    assert group_weights(ranks).tolist() == [1, 0, 0, 0]


def test_a_probability_of_nan_leaves_a_row_to_its_ranks():
    rewards, ranks = torch.randn(3, 2, requires_grad=True), torch.tensor([[0, 1], [1, 0], [0, 1]])
    losses = bradley_terry_loss(rewards, ranks, probabilities=torch.tensor([math.nan, math.nan, 0.5]))
    torch.testing.assert_close(losses[:2], bradley_terry_loss(rewards, ranks)[:2])
    losses.sum().backward()
    assert rewards.grad.isfinite().all()


# --- gradients and magnitudes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str):
    rewards = double(
        [0.3, -1.1, 0.8], [1.7, 0.2, 9.0], [4.0, 5.3, 6.1]
    ).requires_grad_()  # away from the kinks of the hinge
    third = [0, 0, 1] if name in WITH_TIES else [2, 1, 0]
    ranks = torch.tensor([[1, 0, 2], [0, 1, PAD], third])
    assert torch.autograd.gradcheck(lambda r: by_name(name)(r, ranks), rewards)


def test_gradients_agree_with_finite_differences_under_every_bradley_terry_option():
    rewards = double([0.3, -1.1], [1.7, 0.2], [-0.4, 0.9]).requires_grad_()
    ranks, margins = torch.tensor([[0, 1], [1, 0], [0, 0]]), torch.tensor([0.5, 0.0, 1.0])
    probabilities = torch.tensor([math.nan, 0.2, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda r: bradley_terry_loss(r, ranks, margins, probabilities, label_smoothing=0.1), rewards
    )
    assert torch.autograd.gradcheck(lambda r: centering_penalty(r, ranks), rewards)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_rewards_and_padded_groups_give_finite_values_and_gradients(name: str, size: float):
    rewards = torch.tensor(
        [[size, -size, 0.0], [size, -size, 5.0], [size, 7.0, 9.0], [size, size, -size]], requires_grad=True
    )
    last = [0, 0, 1] if name in WITH_TIES else [0, 1, 2]
    ranks = torch.tensor([[0, 1, 2], [0, 1, PAD], [PAD, PAD, PAD], last])
    loss = PreferenceLoss(loss_type=name)(rewards, ranks)
    loss.backward()
    assert loss.isfinite()
    assert rewards.grad.isfinite().all()
    assert (rewards.grad[ranks == PAD] == 0).all()
    assert loss > 1000  # a wrong pair of -1e4 and 1e4 has a large loss in every row


@pytest.mark.parametrize("name", LOSSES)
def test_padding_has_no_effect_even_with_the_lowest_rewards(name: str):
    rewards, ranks = torch.tensor([[-1e4, -1e4 - 1, 5.0]]), torch.tensor([[0, 1, PAD]])
    torch.testing.assert_close(by_name(name)(rewards, ranks), by_name(name)(rewards[:, :2], ranks[:, :2]))


def test_low_precision_rewards_give_a_float32_loss():
    loss = PreferenceLoss()(torch.tensor([[1.5, 0.5]], dtype=torch.bfloat16), torch.tensor([[0, 1]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)


# --- refused input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "bradley-terry"}, r"must be one of \['bradley_terry', .* but is 'bradley-terry'"),
        ({"label_smoothing": 0.5}, r"`label_smoothing` must be in \[0, 0.5\), but is 0.5"),
        ({"label_smoothing": -0.1}, r"in \[0, 0.5\)"),
        ({"label_smoothing": math.nan}, r"in \[0, 0.5\)"),
        (
            {"loss_type": "hinge", "label_smoothing": 0.1},
            "no effect with loss_type='hinge'; it is a setting of bradley_ter",
        ),
        ({"tie_parameter": 2.0}, "no effect with loss_type='bradley_terry'; it is a setting of davidson, rao_kupper"),
        ({"loss_type": "rao_kupper", "tie_parameter": 1.0}, "must be finite and above 1.0"),
        ({"loss_type": "davidson", "tie_parameter": 0.0}, "must be finite and above 0.0"),
        ({"loss_type": "davidson", "tie_parameter": math.inf}, "must be finite and above 0.0"),
        ({"loss_type": "davidson", "tie_parameter": math.nan}, "must be finite and above 0.0"),
        ({"center_rewards_coefficient": -0.1}, "`center_rewards_coefficient` must be .*0 or more, but is -0.1"),
        ({"center_rewards_coefficient": math.nan}, "0 or more"),
    ],
)
def test_a_setting_out_of_range_or_without_effect_is_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PreferenceLoss(**settings)


@pytest.mark.parametrize("name", ["margins", "probabilities", "weights"])
@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_values_that_are_not_one_per_group_are_refused_instead_of_broadcast(name: str, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"`{name}` must have shape \(2,\), one entry per group"):
        PreferenceLoss()(torch.zeros(2, 2), torch.tensor([[0, 1]] * 2), **{name: torch.zeros(shape)})


def test_ranks_and_rewards_must_have_the_same_shape():
    with pytest.raises(ValueError, match=r"same shape.*\(2, 2\) and \(2, 3\).*Pad the ranks"):
        PreferenceLoss()(torch.zeros(2, 2), torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("loss_type", "name"),
    [(k, "margin") for k in (*WITH_TIES, "plackett_luce")]
    + [(k, "probability") for k in ("hinge", *WITH_TIES, "plackett_luce")],
)
def test_a_column_that_the_loss_cannot_use_is_refused(loss_type: str, name: str):
    values = {"margin": "margins", "probability": "probabilities"}[name]
    with pytest.raises(ValueError, match=f"have a `{name}`, which loss_type='{loss_type}' cannot use. Remove this"):
        PreferenceLoss(loss_type=loss_type)(torch.zeros(1, 2), torch.tensor([[0, 1]]), **{values: torch.zeros(1)})


def test_plackett_luce_refuses_ties_but_not_padding():
    plackett_luce_loss(double([1, 2, 3, 4]), torch.tensor([[0, 1, PAD, PAD]]))
    with pytest.raises(ValueError, match=r"strict order.*davidson"):
        plackett_luce_loss(double([1, 2, 3]), torch.tensor([[0, 1, 1]]))


@pytest.mark.parametrize("name", LOSSES)
def test_options_are_filled_with_the_documented_defaults(name: str):
    expected = {
        "bradley_terry": {"label_smoothing": 0.0},
        "rao_kupper": {"tie_parameter": 2.0},
        "davidson": {"tie_parameter": 1.0},
    }
    assert PreferenceLoss(loss_type=name).options == expected.get(name, {})
    if name in WITH_TIES:
        assert PreferenceLoss(loss_type=name, tie_parameter=3.0).options == {"tie_parameter": 3.0}
