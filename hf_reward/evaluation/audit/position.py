"""Position bias of a judge of pairs, as a family of the audit."""

from collections.abc import Sequence

from hf_reward.evaluation.audit.family import Family, FamilyResult
from hf_reward.evaluation.audit.findings import About
from hf_reward.evaluation.audit.inference import RATE_DELTA, Inference
from hf_reward.metrics.arrays import FloatArray
from hf_reward.scoring.judging.position_bias import order_flips, position_excess

FAMILY = "position"


def position_result(one: FloatArray, other: FloatArray, clusters: Sequence[str], inference: Inference) -> FamilyResult:
    """Return the position bias of a judge on the evaluation pairs.

    Args:
        one: P(the response shown first is better) in one order of each pair, shape `(N,)`.
        other: The same in the other order, shape `(N,)`.
        clusters: Prompt of each pair, N.
        inference: Source of the findings.

    Returns:
        The bias, which has a verdict, and the rate of decisions that depend on the order.
    """
    lead, flips = 2 * position_excess(one, other), order_flips(one, other)
    about = About(FAMILY, "position_bias", "win rate of the first position minus that of the second")
    words = "Above 0: the first response wins too often; below 0: the second one."
    return FamilyResult(
        findings=[
            # A win rate of 55% instead of 50% is a difference of 10 points.
            inference.change(about, lead, clusters, delta=2 * RATE_DELTA, note=words),
            inference.rate(
                About(FAMILY, "position_flips", "decisions that depend on the order"),
                flips,
                clusters,
                screen_only=True,
                note="Close decisions also depend on the order by chance.",
            ),
        ]
    )


POSITION = Family(
    name=FAMILY,
    title="Position",
    what="Each pair was judged in both orders. Without a bias, the first position wins half of the time over both "
    "orders.",
    advice="Always ask in both orders and average, as `hf-reward label` does. A large bias leaves little information "
    "in the average: change the question, use a judge that reasons first, or another judge.",
    cases=lambda inputs: [],
    analyse=lambda scored, inputs, inference: FamilyResult(not_assessed="It needs a judge of pairs."),
)
