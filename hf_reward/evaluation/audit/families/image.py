"""Images: whether rewards and preferences depend on the image of the prompt."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_reward.data.preference_row import PreferenceFormatError, Prompt, has_images
from hf_reward.evaluation.audit.cases import Case, ScoredCase
from hf_reward.evaluation.audit.effects import Probes, wins
from hf_reward.evaluation.audit.family import Family, FamilyResult, three_examples
from hf_reward.evaluation.audit.findings import Finding
from hf_reward.evaluation.audit.inference import RATE_DELTA, REWARD_DELTA, Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs, Pair

FAMILY = "image"
UNCHANGED_LIMIT = 0.5
"""If the margin is the same with another image in this share of cases, the model mostly ignores images."""
CREDIT_LIMIT = (1 - RATE_DELTA) / 2
"""Credit of the other image at which `RATE_DELTA` of the accuracy is lost; one half is no loss."""
_OWN = "own"
_OTHERS = {"exchanged": "the image of another row", "noise": "noise"}


def _cases(inputs: AuditInputs) -> list[Case]:
    pairs: dict[str, Pair] = {}
    for pair in inputs.pairs:  # in hash order
        if has_images(pair.prompt):
            pairs.setdefault(pair.cluster, pair)
    chosen = list(pairs.values())[: inputs.profile.answers]
    prompts = [pair.prompt for pair in chosen]
    found = [(pair, _prompts([*prompts[place:], *prompts[:place]])) for place, pair in enumerate(chosen)]
    return [_case(pair, prompts) for pair, prompts in found if prompts is not None]


def _prompts(known: Sequence[Any]) -> dict[str, Prompt] | None:
    """Return the first prompt with each image; None if the others have no other image, or it cannot be decoded."""
    from hf_reward.evaluation.audit.edits.image_edits import exchanged, noised  # not imported for text models

    prompt, *others = known
    other = next((new for each in others if (new := exchanged(prompt, each)) is not None), None)
    if other is None:
        return None
    try:
        return {_OWN: prompt, "exchanged": other, "noise": noised(prompt)}
    except PreferenceFormatError:  # such a pair has no reward either, which is counted
        return None


def _case(pair: Pair, prompts: dict[str, Prompt]) -> Case:
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    texts = {
        f"{image} {side}": pair.text(response, prompt)
        for image, prompt in prompts.items()
        for side, response in sides.items()
    }
    return Case(cluster=pair.cluster, texts=texts, labels={"probe": FAMILY})


def _analyse(scored: list[ScoredCase], inputs: AuditInputs, inference: Inference) -> FamilyResult:
    if not scored:
        return FamilyResult(not_assessed=_reason(inputs))
    probes = Probes(FAMILY, inference)
    findings = [
        *(_unchanged(image, scored, probes) for image in _OTHERS),
        *(_as_good(image, scored, probes) for image in _OTHERS),
        *(_accuracy(image, scored, probes) for image in (_OWN, *_OTHERS)),
        *(_change(image, scored, probes) for image in _OTHERS),
    ]
    roles = {
        f"{image} {side}": f"{label}; {words}"
        for image, words in {_OWN: "own image", **_OTHERS}.items()
        for side, label in (("chosen", "preferred"), ("rejected", "other"))
    }
    return FamilyResult(
        findings=findings,
        examples=three_examples(
            scored,
            lambda each: (_margin(each, _OWN) - _margin(each, "exchanged")) / inference.margin,
            roles,
            "margin lost with the image of another row",
        ),
    )


def _reason(inputs: AuditInputs) -> str:
    if not inputs.takes_images:
        return "The model does not take images."
    if not any(has_images(pair.prompt) for pair in inputs.pairs):
        return "The data has no pairs with images."
    return "It needs pairs with different images that can be scored."


def _margin(each: ScoredCase, image: str) -> float:
    return each.gap(f"{image} chosen", f"{image} rejected")


def _shifts(image: str, scored: Sequence[ScoredCase]) -> np.ndarray:
    """Return the absolute change of each margin, shape `(N,)`."""
    return np.array([abs(_margin(each, image) - _margin(each, _OWN)) for each in scored])


def _credit(image: str, scored: Sequence[ScoredCase]) -> np.ndarray:
    return wins(scored, f"{image} chosen", f"{image} rejected")


def _unchanged(image: str, scored: Sequence[ScoredCase], probes: Probes) -> Finding:
    # Without a unit the typical margin is 0; only equal margins are then unchanged.
    same = 0.0 if probes.inference.unit is None else REWARD_DELTA * probes.inference.margin
    return probes.rate(
        f"image_{image}_unchanged",
        f"{_OTHERS[image]} does not change the margin",
        scored,
        (_shifts(image, scored) <= same).astype(float),
        limit=UNCHANGED_LIMIT,
        note=f"The margin changes by at most {REWARD_DELTA} typical margins. A model that ignores images has 100%.",
    )


def _as_good(image: str, scored: Sequence[ScoredCase], probes: Probes) -> Finding:
    credit = (1 + _credit(image, scored) - _credit(_OWN, scored)) / 2
    found = probes.rate(
        f"image_{image}_as_good",
        f"{_OTHERS[image]} ranks the pair as well (ties count half)",
        scored,
        credit,
        limit=CREDIT_LIMIT,
    )
    numbers = [100 - 200 * (each or 0.0) for each in (found.estimate, found.ci_high, found.ci_low)]
    lost, low, high = (f"{number:+.1f}" for number in numbers)
    interval = "" if found.ci_low is None else f" (95% interval {low} to {high})"
    words = f"Accuracy lost: {lost} points{interval}. A model that ignores images loses none and has one half."
    return replace(found, note=f"{words} {found.note}".strip())


def _accuracy(image: str, scored: Sequence[ScoredCase], probes: Probes) -> Finding:
    words = "the right image" if image == _OWN else _OTHERS[image]
    return probes.rate(
        f"image_{image}_accuracy", f"accuracy with {words}", scored, _credit(image, scored), screen_only=True
    )


def _change(image: str, scored: Sequence[ScoredCase], probes: Probes) -> Finding:
    spread = float(np.std([_margin(each, _OWN) for each in scored]))
    return probes.change(
        f"image_{image}_change",
        f"mean absolute change of the margin with {_OTHERS[image]}",
        scored,
        _shifts(image, scored) / (spread or 1.0),
        screen_only=True,
        unit="standard deviations of the margin" if spread else "reward units",
    )


IMAGE = Family(
    name=FAMILY,
    title="Image",
    what="The image of each prompt was replaced by that of another row, and by noise of the same size. Both should "
    "change the margin between the two responses and lower the accuracy. The finding is a model that ignores images: "
    "a replacement leaves more than half of the margins unchanged, or costs less than 5 points of accuracy.",
    advice="Check that each row of the training data had its image. Then add pairs in which one response is right "
    "for one image and wrong for another, so that text alone does not decide.",
    cases=_cases,
    analyse=_analyse,
)
