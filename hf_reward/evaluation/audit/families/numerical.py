"""Numerical invariance: rewards must not depend on the batch, on padding or on precision."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from hf_reward.evaluation.audit.cases import Text
from hf_reward.evaluation.audit.family import Family, FamilyResult
from hf_reward.evaluation.audit.findings import About, Finding, Table
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs, Pair
from hf_reward.metrics.arrays import FloatArray
from hf_reward.modeling.reward_head import reads_positions, unwrap_model
from hf_reward.scoring.reward_scorer import RewardScorer

FAMILY = "numerical"
_DELTA = 0.01
"""Largest change of a reward by rounding, in typical margins."""
_PAIRS = {"quick": 8}
_PAIRS_OTHERWISE = 100


def numerical_result(scorer: RewardScorer, inputs: AuditInputs, inference: Inference) -> FamilyResult:
    """Score some pairs in several ways that should give the same reward.

    Args:
        scorer: The scorer under audit.
        inputs: Its pairs.
        inference: Unit and resamples.

    Returns:
        The findings.
    """
    pairs = inputs.edited_pairs()[: _PAIRS.get(inputs.profile.name, _PAIRS_OTHERWISE)]
    texts = [pair.text(side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    clusters = [pair.cluster for pair in pairs]
    if not pairs or inference.unit is None:
        return FamilyResult(not_assessed="There are no pairs, or no typical margin to compare differences with.")
    together = _rewards(scorer, texts)
    findings, rows = [], []
    for variant in _variants(scorer, inputs.profile.name == "quick"):
        try:
            other = variant.score(texts)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # a device without that precision
            rows.append([variant.label, "not assessed", " ".join(str(error).split())[:120], "-"])
            continue
        finding, row = _difference(variant, together, other, clusters, inference)
        findings.append(finding)
        rows.append(row)
    findings.append(_truncation(scorer, inputs, inference))
    columns = ["Compared with one batch", "Largest difference", "99th percentile in typical margins", "Flips"]
    return FamilyResult(findings=findings, tables=[Table(title="Differences", columns=columns, rows=rows)])


class _Variant(NamedTuple):
    """A way of scoring that should change no reward."""

    name: str
    label: str
    score: Callable[[Sequence[Text]], FloatArray]


def _variants(scorer: RewardScorer, quick: bool) -> list[_Variant]:
    def alone(texts: Sequence[Text]) -> FloatArray:
        return np.concatenate([_rewards(scorer, [each]) for each in texts])

    def padded(texts: Sequence[Text]) -> FloatArray:
        return _rewards(scorer.with_padding(), texts)

    def halved(texts: Sequence[Text]) -> FloatArray:
        with torch.autocast(unwrap_model(scorer.model).device.type, torch.bfloat16):
            return _rewards(scorer, texts)

    variants: list[_Variant] = [_Variant("batch_mates", "texts scored alone", alone)]
    if quick:
        return variants
    variants.append(_Variant("padding", "padded batches instead of packed ones", padded))
    if reads_positions(scorer.model) and not scorer.corrects_length:  # a stock forward pass has no correction
        variants.append(
            _Variant("left_padding", "stock left-padded batches", lambda texts: _left_padded(scorer, texts))
        )
    return [*variants, _Variant("bfloat16", "bfloat16 arithmetic", halved)]


def _rewards(scorer: RewardScorer, texts: Sequence[Text]) -> FloatArray:
    return scorer.score_requests([each.request() for each in texts], show_progress=False).rewards.astype(np.float64)


@torch.inference_mode()
def _left_padded(scorer: RewardScorer, texts: Sequence[Text], batch: int = 8) -> FloatArray:
    """Rewards of the stock forward pass on left-padded batches."""
    encoded = scorer.encode([each.request() for each in texts])
    if any(each.images for each in encoded):
        raise ValueError("Left padding is not supported for rows with images.")
    ids = [each.input_ids for each in encoded]
    model = unwrap_model(scorer.model)
    pad = model.config.get_text_config().pad_token_id or 0
    training = model.training
    model.eval()
    rewards: list[float] = []
    try:
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch]
            width = max(map(len, part))
            rows = torch.tensor([[pad] * (width - len(each)) + each for each in part], device=model.device)
            mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in part], device=model.device)
            found = scorer.model(input_ids=rows, attention_mask=mask)
            rewards += found.logits.float()[:, 0].tolist()
    finally:
        model.train(training)
    return np.array(rewards)


def _difference(
    variant: _Variant, together: FloatArray, other: FloatArray, clusters: Sequence[str], inference: Inference
) -> tuple[Finding, list[str]]:
    """Share of pairs with a reward change beyond float32 rounding, or another preferred response."""
    unit = inference.margin
    shift = np.abs(together - other).reshape(-1, 2) / unit
    known = np.array(np.isfinite(shift).all(axis=1))
    sides = [np.sign(each[0::2] - each[1::2]) for each in (together, other)]
    flips = (sides[0] != sides[1])[known]
    moved, note = flips, "Pairs whose preferred response changes; the table has the changes of rewards."
    if variant.name != "bfloat16":  # bfloat16 rounds by more than that
        moved = (shift[known].max(axis=1) > _DELTA) | flips
        note = f"A reward changes by more than {_DELTA} typical margins, or the preferred response changes."
    found = inference.rate(
        About(FAMILY, f"numerical_{variant.name}", f"pairs that change with {variant.label}"),
        moved.astype(float),
        [cluster for cluster, one in zip(clusters, known, strict=True) if one],
        note=note,
    )
    most = shift[known].max(initial=0.0)
    high = np.quantile(shift[known], 0.99) if known.any() else 0.0
    return found, [variant.label, f"{most * unit:.1e}", f"{high:.4f}", str(int(flips.sum()))]


def _truncation(scorer: RewardScorer, inputs: AuditInputs, inference: Inference) -> Finding:
    """Share of pairs that exceed the length limit."""
    pairs: list[Pair] = inputs.pairs
    encoded = scorer.encode([pair.text(side).request() for pair in pairs for side in (pair.chosen, pair.rejected)])
    complete = [not (each.cut_tokens or each.problem) for each in encoded]
    cut = [float(not (one and other)) for one, other in zip(complete[0::2], complete[1::2], strict=True)]
    return inference.rate(
        About(FAMILY, "truncated_pairs", "pairs that exceed the length limit"),
        cut,
        [pair.cluster for pair in pairs],
        screen_only=True,
    )


NUMERICAL = Family(
    name=FAMILY,
    title="Numerical invariance",
    what="The same texts were scored alone, padded on either side and in lower precision. None of this should change a "
    "reward.",
    advice="Score in float32, check the pad token and the padding side with `hf-reward verify`, and never compare "
    "rewards of different precision.",
    cases=lambda inputs: [],
    analyse=lambda scored, inputs, inference: FamilyResult(
        not_assessed="It needs a `RewardScorer`, not a function of texts."
    ),
)
