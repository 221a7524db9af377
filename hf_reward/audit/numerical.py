"""Does a reward depend on what is scored with it, on padding or on precision?"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from hf_reward.audit.evidence import Family, FamilyResult, Finding, FloatArray, Table, Text
from hf_reward.audit.inference import Inference
from hf_reward.audit.material import Material, Pair
from hf_reward.reward_head import bare_model, reads_positions
from hf_reward.reward_scorer import RewardScorer

FAMILY = "numerical"
_DELTA = 0.01
"""Of a typical margin: rounding may move a reward by so much."""
_PAIRS = {"quick": 8, "full": 100}


def numerical_result(scorer: RewardScorer, material: Material, inference: Inference) -> FamilyResult:
    """Score some pairs in several ways that should give the same reward.

    Args:
        scorer: The scorer under audit.
        material: Its pairs.
        inference: Unit and resamples.

    Returns:
        The findings.
    """
    pairs = material.edited_pairs()[: _PAIRS[material.profile.name]]
    texts = [pair.text(side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    clusters = [pair.cluster for pair in pairs for _ in range(2)]
    if not pairs or inference.unit is None:
        return FamilyResult(not_assessed="There are no pairs, or no typical margin to compare differences with.")
    together = _rewards(scorer, texts)
    findings, rows = [], []
    for name, label, score in _ways(scorer, material.profile.name == "quick"):
        try:
            other = score(texts)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # a device without that precision
            rows.append([label, "not assessed", " ".join(str(error).split())[:120], "-"])
            continue
        findings.append(_difference(name, label, together, other, clusters, inference))
        gaps = [np.sign(each[0::2] - each[1::2]) for each in (together, other)]
        high = np.quantile(np.abs(together - other), 0.99) / inference.unit.value
        rows.append([label, f"{np.abs(together - other).max():.1e}", f"{high:.4f}", f"{np.sum(gaps[0] != gaps[1])}"])
    findings.append(_truncation(scorer, material, inference))
    columns = ["compared with all texts together", "largest difference", "99% are below, typical margins", "flips"]
    return FamilyResult(findings=findings, tables=[Table(title="Differences", columns=columns, rows=rows)])


_Way = tuple[str, str, Callable[[Sequence[Text]], FloatArray]]


def _ways(scorer: RewardScorer, quick: bool) -> list[_Way]:
    def alone(texts: Sequence[Text]) -> FloatArray:
        return np.concatenate([_rewards(scorer, [each]) for each in texts])

    def padded(texts: Sequence[Text]) -> FloatArray:
        other = RewardScorer(scorer.model, scorer.tokenizer, scorer.record, packing=False)
        return _rewards(other, texts)

    def halved(texts: Sequence[Text]) -> FloatArray:
        with torch.autocast(bare_model(scorer.model).device.type, torch.bfloat16):
            return _rewards(scorer, texts)

    ways: list[_Way] = [("batch_mates", "each text alone", alone)]
    if quick:
        return ways
    ways.append(("padding", "padded batches instead of packed ones", padded))
    if reads_positions(scorer.model):
        ways.append(("left_padding", "stock left-padded batches", lambda texts: _left_padded(scorer, texts)))
    return [*ways, ("bfloat16", "bfloat16 arithmetic", halved)]


def _rewards(scorer: RewardScorer, texts: Sequence[Text]) -> FloatArray:
    return scorer.score_requests([each.request() for each in texts], show_progress=False).rewards.astype(np.float64)


@torch.inference_mode()
def _left_padded(scorer: RewardScorer, texts: Sequence[Text], batch: int = 8) -> FloatArray:
    """Rewards of the stock forward pass on batches with the padding before the text."""
    ids = [each.input_ids for each in scorer.encode([each.request() for each in texts])]
    model = bare_model(scorer.model)
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
    name: str, label: str, together: FloatArray, other: FloatArray, clusters: Sequence[str], inference: Inference
) -> Finding:
    known = np.isfinite(together) & np.isfinite(other)
    return inference.reward_effect(
        (FAMILY, f"numerical_{name}", f"mean difference to {label}"),
        np.abs(together - other)[known],
        np.array(clusters)[known].tolist(),
        only_above=True,
        delta=_DELTA,
    )


def _truncation(scorer: RewardScorer, material: Material, inference: Inference) -> Finding:
    """How many pairs do not fit the length limit as they are."""
    pairs: list[Pair] = material.pairs
    encoded = scorer.encode([pair.text(side).request() for pair in pairs for side in (pair.chosen, pair.rejected)])
    whole = [not (each.cut_tokens or each.problem) for each in encoded]
    cut = [float(not (one and other)) for one, other in zip(whole[0::2], whole[1::2], strict=True)]
    return inference.rate(
        (FAMILY, "truncated_pairs", "pairs of which a part does not fit the length limit"),
        cut,
        [pair.cluster for pair in pairs],
        screen_only=True,
    )


NUMERICAL = Family(
    name=FAMILY,
    title="Numerical invariance",
    what="The same texts were scored alone, padded on either side and in lower precision. A reward should not depend "
    "on any of it.",
    advice="Score in float32, look at the pad token and the padding side with `hf-reward verify`, and never compare "
    "rewards of different precision.",
    cases=lambda material: [],
    judge=lambda judged, material, inference: FamilyResult(
        not_assessed="It needs a `RewardScorer`, not a function of texts."
    ),
)
