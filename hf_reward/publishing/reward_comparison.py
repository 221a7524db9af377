"""Compare recorded rewards with rewards of stock programs, with tolerances by precision."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.probe_texts import OTHER_PICTURE, PICTURE
from hf_reward.modeling.probes import COARSE_TOLERANCE, HALF_TOLERANCE, differing, relative_differences, tolerance
from hf_reward.publishing.verification import Check

IMAGES = "with images"
_WAY_NAMES = {
    "alone": "each alone",
    "right": "padded on the right",
    "left": "padded on the left",
    "pipeline": "text-classification pipeline",
}


def compare(record: CheckpointRecord, recorded: dict[str, list[float | None]], found: dict[str, Any]) -> list[Check]:
    """Compare weights, token ids and rewards.

    Args:
        record: Record of the folder.
        recorded: Recorded rewards by compute precision.
        found: Result of `run_stock_scoring`.

    Returns:
        One check of the weights, one of the token ids, and one for each precision and way of scoring.
    """
    conversations, missing = record.probes["conversations"], found["missing"]
    pictures = record.probes.get("images")
    lost = f"missing and therefore random: {', '.join(missing[:4])}" if missing else "complete"
    return [
        Check(name="weights", passed=not missing, detail=lost),
        _check_ids(conversations, found["input_ids"]),
        *(
            _check_rewards(record, dtype, way, expected, rewards)
            for dtype, expected in recorded.items()
            for way, rewards in found["rewards"][dtype].items()
        ),
        *(_check_pictures(record, pictures, found["images"]) if pictures and pictures["conversations"] else []),
    ]


def _check_pictures(record: CheckpointRecord, recorded: dict[str, Any], found: dict[str, Any]) -> list[Check]:
    """Check token ids and rewards of conversations with pictures.

    Another implementation of the image processor rounds pixels differently, so rewards are reported only.
    """
    if "problem" in found:
        return [Check(name="images", passed=False, detail=f"not checked: {found['problem']}")]
    conversations, is_same = recorded["conversations"], found["processor"] == recorded["processor"]
    ids = _check_ids(conversations, found["input_ids"])
    return [
        replace(ids, name="token ids, images"),
        *(
            _check(
                f"rewards, {dtype}, {IMAGES}",
                conversations,
                recorded["rewards"][dtype],
                rewards,
                _allowed(dtype, "alone", record) if is_same else math.inf,
            )
            for dtype, rewards in found["rewards"].items()
            if dtype in recorded["rewards"]
        ),
    ]


def _check_rewards(
    record: CheckpointRecord, dtype: str, way: str, expected: list[float | None], rewards: list[float]
) -> Check:
    """Check the rewards of one precision and one way of scoring."""
    conversations, found = record.probes["conversations"], list[float | None](rewards)
    if way == "pipeline":  # it drops an empty second text of a pair
        found = [
            known if probe.get("text_pair") == "" else reward
            for probe, known, reward in zip(conversations, expected, rewards, strict=True)
        ]
    return _check(f"rewards, {dtype}, {_WAY_NAMES[way]}", conversations, expected, found, _allowed(dtype, way, record))


def _check(
    name: str,
    conversations: list[dict[str, Any]],
    expected: Sequence[float | None],
    found: Sequence[float | None],
    allowed: float,
) -> Check:
    """Compare rewards of probes."""
    differences = relative_differences(expected, found)
    largest = max(differences)
    places = differing(expected, found, allowed)
    bound = f"allowed {allowed:.1e}" if math.isfinite(allowed) else "reported only"
    detail = f"largest difference {largest:.1e}, {bound}"
    if places:
        worst = max(places, key=differences.__getitem__)
        detail += f", at the probe {conversations[worst]['name']!r}: {found[worst]} instead of {expected[worst]}"
    return Check(
        name=name,
        passed=not places,
        detail=detail,
        difference=largest if math.isfinite(largest) else None,  # JSON has no infinity
        allowed=allowed if math.isfinite(allowed) else None,
    )


def _allowed(dtype: str, way: str, record: CheckpointRecord) -> float:
    """Return the allowed relative difference; infinite if a difference does not indicate a damaged folder.

    Weights are checked in float32. Rounding in half precision depends on batch and device (up to 0.045 in an undamaged
    model of 30 layers), so half precision is only checked if no float32 rewards were recorded.
    """
    if dtype == "float32":
        if record.quantization:  # quantised kernels differ by device
            return HALF_TOLERANCE
        return tolerance(dtype, same_device=record.probes.get("device", "cpu") == "cpu")
    is_checked = "float32" not in record.probes["rewards"] and way in ("alone", "pipeline")
    if not is_checked:
        return math.inf
    as_saved = dtype == record.dtype and not record.probes.get("weights_cast")  # an adapter may have float32 weights
    return HALF_TOLERANCE if as_saved else COARSE_TOLERANCE  # cast weights are rounded


def half_precision_notes(checks: list[Check]) -> list[str]:
    """Return notes on half precisions whose rewards differ by more than the usual rounding."""
    found: dict[str, float] = {}
    for check in checks:
        if check.name.startswith("rewards, ") and check.difference is not None and check.allowed is None:
            dtype = check.name.split(", ")[1]
            if check.name.endswith(IMAGES):  # may have another image processor
                continue
            found[dtype] = max(check.difference, found.get(dtype, 0.0))
    return [
        f"Computed in {dtype}, rewards differ by up to {difference:.1e} relative to max(1, |reward|), which may change "
        "the order of similar responses. Score in float32 if that matters."
        for dtype, difference in found.items()
        if difference > HALF_TOLERANCE
    ]


def picture_notes(record: CheckpointRecord, found: dict[str, Any]) -> list[str]:
    """Return notes on the image processor, and on rewards that ignore pictures.

    Args:
        record: Record of the folder.
        found: Result of `run_stock_scoring`.

    Returns:
        The notes; none for a text model.
    """
    recorded = record.probes.get("images")
    if not recorded:
        return []
    if not recorded["conversations"]:
        return ["Images were not checked: no picture was within the length limit when the model was saved."]
    if "problem" in found["images"]:
        return []
    here, rewards = found["images"]["processor"], next(iter(found["images"]["rewards"].values()))
    names = [probe["name"] for probe in recorded["conversations"]]
    by_name = dict(zip(names, rewards, strict=True))
    pair = [by_name[name] for name in (PICTURE, OTHER_PICTURE) if name in by_name]
    notes = []
    if here != recorded["processor"]:
        notes.append(
            f"Images were processed by {here}, and by {recorded['processor']} when the model was saved. The two round "
            "pixels differently, so the differences of rewards with images are only reported."
        )
    if len(pair) == 2:
        change = abs(pair[1] - pair[0])
        notes.append(
            f"Another picture changes the reward of the same text by {change:.2g}."
            if change
            else "Rewards do not depend on the picture: the same text gets the same reward with another one."
        )
    return notes


def _check_ids(conversations: list[dict[str, Any]], found: list[list[int]]) -> Check:
    for probe, ids in zip(conversations, found, strict=True):
        expected = [int(word) for word in probe["input_ids"].split()]
        if ids != expected:
            pairs = enumerate(zip(expected, ids, strict=False))
            place = next((at for at, (one, other) in pairs if one != other), min(len(expected), len(ids)))
            detail = (
                f"the probe {probe['name']!r} now has {len(ids)} tokens instead of {len(expected)}; the first "
                f"different token is number {place}: {ids[place : place + 3]} instead of {expected[place : place + 3]}"
            )
            return Check(name="token ids", passed=False, detail=detail)
    return Check(name="token ids", passed=True, detail="unchanged")
