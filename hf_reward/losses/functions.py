"""Loss functions of the rewards and ranks of a batch of groups.

Pure torch, without models, tokens or trainers. A *group* is one preference row: one prompt with K responses. Every
loss is a weighted mean of per-group values in nats. A batch can therefore be split into micro-batches or over
processes without changing the gradient, if each part divides by the `normalizer` of the full batch. `length_penalty`
is the exception: a correlation is not a sum over groups.

Shapes: G groups, K responses in a group (padded with rank -100).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

PADDING_RANK = -100
"""Rank of a padded entry in a `(G, K)` batch: the value that transformers' evaluation loop pads with."""


def strict_pairs(ranks: Tensor) -> Tensor:
    """Mark every ordered pair (i, j) of a group in which response i is strictly preferred to response j.

    Args:
        ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, integer.

    Returns:
        Boolean mask, shape `(G, K, K)`.
    """
    return (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & present_pairs(ranks)


def tied_pairs(ranks: Tensor) -> Tensor:
    """Mark every unordered pair i < j of a group whose two responses have equal rank.

    Args:
        ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, integer.

    Returns:
        Boolean mask, shape `(G, K, K)`, upper triangle only.
    """
    return (ranks.unsqueeze(2) == ranks.unsqueeze(1)).triu(diagonal=1) & present_pairs(ranks)


def present_pairs(ranks: Tensor) -> Tensor:
    """Mark every pair of entries of a group that are not padding, shape `(G, K, K)`."""
    present = ranks != PADDING_RANK
    return present.unsqueeze(2) & present.unsqueeze(1)


def group_weights(
    ranks: Tensor,
    probabilities: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    models_ties: bool = False,
) -> Tensor:
    """Return the weight of each group in the loss: zero for a group that holds no preference that the loss can use.

    Args:
        ranks: Ranks, shape `(G, K)`, -100 is padding.
        probabilities: P(first response preferred), NaN for rows without one, shape `(G,)`.
        weights: Row weights, shape `(G,)`; 1 by default.
        models_ties: Whether the loss uses tied pairs.

    Returns:
        Weights, shape `(G,)`, float32.
    """
    informative = strict_pairs(ranks).flatten(1).any(1)
    if models_ties:
        informative = informative | tied_pairs(ranks).flatten(1).any(1)
    if probabilities is not None:
        informative = informative | ~probabilities.isnan()
    weights = torch.ones_like(informative, dtype=torch.float32) if weights is None else weights.float()
    return torch.where(informative, weights, torch.zeros_like(weights))


def bradley_terry_loss(
    rewards: Tensor,
    ranks: Tensor,
    margins: Tensor | None = None,
    probabilities: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of the preferences under the Bradley-Terry model, per group.

    With z = r_i - r_j - margin for a pair in which i is preferred, and target t = 1 - label_smoothing:
    `-t log sigmoid(z) - (1 - t) log sigmoid(-z)`, averaged over the strict pairs of the group. A row with a probability
    p that its first response is preferred has one pair, first against second, with
    t = p (1 - 2 label_smoothing) + label_smoothing. Its margin applies to the likelier side, and to neither at p = 0.5.

    Args:
        rewards: Rewards, shape `(G, K)`, float32.
        ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, int64.
        margins: Smallest reward gap that a preference should have, in reward units, shape `(G,)`.
        probabilities: P(first response preferred), NaN for rows without one, shape `(G,)`.
        label_smoothing: Probability that a label is wrong, in [0, 0.5).

    Returns:
        Loss of each group in nats, shape `(G,)`; 0 for a group without a strict pair.

    Source:
        Bradley and Terry (1952); margin: Touvron et al. (2023), "Llama 2", eq. 2; label smoothing: Mitchell (2023),
        "A note on DPO with noisy preferences".
    """
    gaps = _gaps(rewards, margins)  # (G, K, K)
    pairs = strict_pairs(ranks)
    losses = -(1 - label_smoothing) * logsigmoid(gaps) - label_smoothing * logsigmoid(-gaps)
    strict = _mean_over_pairs(losses, pairs)
    if probabilities is None:
        return strict
    _check_per_group(rewards, probabilities=probabilities)
    stated = ~probabilities.isnan()
    probabilities = probabilities.nan_to_num(0.5).to(rewards.dtype)
    target = probabilities * (1 - 2 * label_smoothing) + label_smoothing
    gap = rewards[:, 0] - rewards[:, 1]
    if margins is not None:
        # Swapping the responses (and p with 1 - p) must not change the loss.
        gap = gap - margins.to(rewards.dtype) * (probabilities - 0.5).sign()
    soft = -target * logsigmoid(gap) - (1 - target) * logsigmoid(-gap)
    return torch.where(stated, soft, strict)


def hinge_loss(rewards: Tensor, ranks: Tensor, margins: Tensor | None = None) -> Tensor:
    """Pairwise hinge loss with a gap of one reward unit, per group.

    `max(0, 1 - (r_i - r_j - margin))`, averaged over the strict pairs of the group.

    Args:
        rewards: Rewards, shape `(G, K)`, float32.
        ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, int64.
        margins: Gap required in addition to the one unit, in reward units, shape `(G,)`.

    Returns:
        Loss of each group in reward units, shape `(G,)`.

    Source:
        Joachims (2002), "Optimizing search engines using clickthrough data", the pairwise hinge of ranking SVMs.
    """
    return _mean_over_pairs(relu(1 - _gaps(rewards, margins)), strict_pairs(ranks))


def rao_kupper_loss(rewards: Tensor, ranks: Tensor, *, tie_parameter: float = 2.0) -> Tensor:
    """Negative log-likelihood of preferences and ties under the Rao-Kupper model, per group.

    With threshold theta >= 1 and eta = log theta: P(i preferred) = sigmoid(r_i - r_j - eta) and
    P(tie) = (theta^2 - 1) sigmoid(r_i - r_j - eta) sigmoid(r_j - r_i - eta). Two responses of equal reward tie with
    probability (theta - 1) / (theta + 1). Averaged over the strict and tied pairs of the group.

    Args:
        rewards: Rewards, shape `(G, K)`, float32.
        ranks: Rank of each response, equal ranks are a tie, -100 is padding, shape `(G, K)`, int64.
        tie_parameter: theta; 1 is Bradley-Terry, where ties are impossible.

    Returns:
        Loss of each group in nats, shape `(G,)`.

    Source:
        Rao and Kupper (1967), "Ties in paired-comparison experiments", eq. 2.
    """
    gaps, eta = _gaps(rewards, None), math.log(tie_parameter)
    win = -logsigmoid(gaps - eta)
    # theta^2 - 1 is 0 at theta = 1: a tie then has probability 0 and an infinite loss, as it should.
    log_scale = math.log(tie_parameter**2 - 1) if tie_parameter > 1 else -math.inf
    tie = -log_scale - logsigmoid(gaps - eta) - logsigmoid(-gaps - eta)
    return _mean_over_two_kinds(win, strict_pairs(ranks), tie, tied_pairs(ranks))


def davidson_loss(rewards: Tensor, ranks: Tensor, *, tie_parameter: float = 1.0) -> Tensor:
    """Negative log-likelihood of preferences and ties under the Davidson model, per group.

    P(i preferred) = e^{r_i} / Z and P(tie) = nu e^{(r_i + r_j) / 2} / Z, with
    Z = e^{r_i} + e^{r_j} + nu e^{(r_i + r_j) / 2}. Two responses of equal reward tie with probability
    nu / (2 + nu). Averaged over the strict and tied pairs of the group.

    Args:
        rewards: Rewards, shape `(G, K)`, float32.
        ranks: Rank of each response, equal ranks are a tie, -100 is padding, shape `(G, K)`, int64.
        tie_parameter: nu >= 0; 0 is Bradley-Terry, where ties are impossible.

    Returns:
        Loss of each group in nats, shape `(G,)`.

    Source:
        Davidson (1970), "On extending the Bradley-Terry model to accommodate ties", eq. 2.
    """
    gaps = _gaps(rewards, None)
    log_nu = math.log(tie_parameter) if tie_parameter > 0 else -math.inf
    # log Z relative to the winner's reward; logaddexp keeps it exact for gaps of any size.
    log_z = torch.logaddexp(torch.logaddexp(torch.zeros_like(gaps), -gaps), log_nu - gaps / 2)
    tie = log_z - (log_nu - gaps / 2)
    return _mean_over_two_kinds(log_z, strict_pairs(ranks), tie, tied_pairs(ranks))


def plackett_luce_loss(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Negative log-likelihood of each group's full ranking under the Plackett-Luce model.

    P(ranking) = prod_k e^{r_k} / sum_{j >= k} e^{r_j}, with the responses taken best first. For K = 2 this is
    `bradley_terry_loss`. Computed with `logcumsumexp`, so rewards of any size are safe.

    Args:
        rewards: Rewards, shape `(G, K)`, float32.
        ranks: Rank of each response, 0 is best, -100 is padding, shape `(G, K)`, int64. A strict order.

    Returns:
        Loss of each group in nats, shape `(G,)`.

    Raises:
        ValueError: If a group has tied responses.

    Source:
        Plackett (1975), "The analysis of permutations"; Luce (1959), "Individual choice behavior".
    """
    if tied_pairs(ranks).any():
        raise ValueError(
            "The Plackett-Luce loss needs a strict order, but the batch has a row with tied responses. "
            "Break the ties, drop these rows, or use loss_type='davidson'."
        )
    present = ranks != PADDING_RANK
    order = torch.where(present, ranks, torch.iinfo(ranks.dtype).max).argsort(dim=1, stable=True)
    rewards, present = rewards.gather(1, order), present.gather(1, order)
    # Padding comes last; a very small finite reward keeps its gradient through logcumsumexp finite.
    masked = rewards.masked_fill(~present, torch.finfo(rewards.dtype).min / 2)
    log_remaining = masked.flip(1).logcumsumexp(1).flip(1)  # log of the sum over this response and all worse ones
    return ((log_remaining - masked) * present).sum(1)


def centering_penalty(rewards: Tensor, ranks: Tensor) -> Tensor:
    """Mean of (r_i + r_j)^2 over the pairs of each group, which pulls the mean reward towards zero.

    Args:
        rewards: Rewards, shape `(G, K)`, float32.
        ranks: Ranks, -100 is padding, shape `(G, K)`, int64.

    Returns:
        Penalty of each group in squared reward units, shape `(G,)`.

    Source:
        Eisenstein et al. (2023), "Helping or herding?", eq. 2.
    """
    sums = rewards.unsqueeze(2) + rewards.unsqueeze(1)
    return _mean_over_pairs(sums.square(), present_pairs(ranks).triu(diagonal=1))


def length_correlation_penalty(rewards: Tensor, lengths: Tensor, ranks: Tensor) -> Tensor:
    """Absolute Pearson correlation of reward and length over all responses of a batch.

    Every response counts once, whatever its group's weight. The penalty is not a sum over groups: the two halves of a
    batch have different correlations than the full batch. Scaling or shifting rewards or lengths changes nothing. The
    smaller the spread of rewards, the larger the gradient.

    Args:
        rewards: Rewards, shape `(G, K)`.
        lengths: Length of each response, for example in tokens, shape `(G, K)`; padding may have any value.
        ranks: Ranks, -100 is padding, shape `(G, K)`, int64.

    Returns:
        The penalty in [0, 1], shape `()`, float32. 0 with gradient 0 where the correlation is undefined or trivial:
        fewer than three responses (two always correlate perfectly), or all rewards or all lengths equal.

    Raises:
        ValueError: If the shapes differ.

    Source:
        Chen et al. (2024), "ODIN: Disentangled reward mitigates hacking in RLHF", section 3: the |correlation| term of
        the quality head, applied to the only head.
    """
    for name, values in (("lengths", lengths), ("ranks", ranks)):
        if values.shape != rewards.shape:
            raise ValueError(
                f"`rewards` and `{name}` must have the same shape (G, K), but have {tuple(rewards.shape)} and "
                f"{tuple(values.shape)}. Pad both to the same K."
            )
    present = ranks != PADDING_RANK
    if present.sum() < 3:
        return rewards[present].float().sum() * 0
    return (_standardized(rewards[present].float()) * _standardized(lengths[present].float())).sum().abs()


def _standardized(values: Tensor) -> Tensor:
    """Scale values to mean 0 and norm 1; all 0, without gradient, if they are equal up to rounding."""
    # The squares of large rewards must not overflow, and dividing by a constant changes no correlation.
    size = values.detach().abs().max()
    units = values / torch.where(size > 0, size, torch.ones_like(size))
    centred = units - units.mean()
    if centred.detach().abs().max() < 1e-6:
        return centred * 0
    return centred / centred.norm()


def _gaps(rewards: Tensor, margins: Tensor | None) -> Tensor:
    """r_i - r_j - margin for every ordered pair of a group, shape `(G, K, K)`."""
    gaps = rewards.unsqueeze(2) - rewards.unsqueeze(1)
    if margins is None:
        return gaps
    _check_per_group(rewards, margins=margins)
    return gaps - margins.to(rewards.dtype)[:, None, None]


def _check_per_group(rewards: Tensor, **values: Tensor | None) -> None:
    """Refuse values that would broadcast silently instead of having one entry per group."""
    for name, value in values.items():
        if value is not None and value.shape != rewards.shape[:1]:
            raise ValueError(
                f"`{name}` must have shape ({rewards.shape[0]},), one entry per group, but has {tuple(value.shape)}. "
                "Pass a 1-D tensor."
            )


def _mean_over_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """Mean of `values` over the marked pairs of each group, 0 where there are none, shape `(G,)`."""
    # `where` instead of multiplication: an infinite value at an unmarked pair must not become NaN.
    total = torch.where(pairs, values, torch.zeros_like(values)).sum((1, 2))
    return total / pairs.sum((1, 2)).clamp(min=1)


def _mean_over_two_kinds(win: Tensor, wins: Tensor, tie: Tensor, ties: Tensor) -> Tensor:
    """Mean over the pairs of each group, some valued by `win` and some by `tie`, shape `(G,)`."""
    return _mean_over_pairs(torch.where(ties, tie, win), wins | ties)
