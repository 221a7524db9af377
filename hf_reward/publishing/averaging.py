"""Several reward models -> one model with their mean weights (WARM), which is more robust than each model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_reward.data.atomic_folder import require_free
from hf_reward.publishing.export import ExportReport, ExportRule, as_plain, write_verified
from hf_reward.publishing.saved_model import RewardChanges, SavedModel, load_saved


def average_reward_models(
    sources: Sequence[str | Path],
    folder: str | Path,
    rule: ExportRule | None = None,
    *,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Average the weights of reward models that were fine-tuned from the same model.

    Args:
        sources: Two or more folders or Hub ids; adapters are merged first.
        folder: Output folder.
        rule: Options of the export.
        allow_pickle: Read pickled weights (tensors only).
        overwrite: Replace an existing folder.

    Returns:
        Report on the written and verified folder.

    Raises:
        ValueError: If the models cannot be averaged; the message names the differences.

    Source:
        Ramé et al. (2024), "WARM: On the Benefits of Weight Averaged Reward Models", equation 2.
    """
    rule = rule or ExportRule()
    if len(sources) < 2:
        raise ValueError(f"Averaging requires at least two models, but got {len(sources)}.")
    require_free(Path(folder), overwrite)
    how: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": rule.trust_remote_code}
    mean = load_saved(sources[0], **how)
    rewards = [mean.rewards]
    mean = as_plain(mean)
    parameters = dict(mean.model.named_parameters())  # tied parameters once
    for count, source in enumerate(sources[1:], start=2):
        member = load_saved(source, **how)
        rewards.append(member.rewards)
        member = as_plain(member)
        _require_same_kind(sources[0], mean, source, member)
        with torch.no_grad():
            for name, value in member.model.named_parameters():
                parameters[name].add_((value - parameters[name]) / count)
    note = f"Average of {len(sources)} models. The evaluations of these models do not apply to it: evaluate it again."
    mean = replace(mean.changed(mean.model), changes=RewardChanges(notes=[note]))
    for name, before in zip(_short_names(sources), rewards, strict=True):
        mean.note_change(f"from {name} to the average", before)
    origin = {"averaged": [str(source) for source in sources]}
    per_model = {"steps": None, "command": None}
    mean.record = replace(
        mean.record,
        evaluation={},
        calibration={},
        length_correction={},
        reward_statistics={},
        training={**mean.record.training, **per_model},
        origin=origin,
    )
    return write_verified(mean, folder, rule)


def _short_names(sources: Sequence[str | Path]) -> list[str]:
    """Return the last parts of the paths if they differ, otherwise the complete paths."""
    short = [Path(source).name for source in sources]
    return short if len(set(short)) == len(short) else [str(source) for source in sources]


def _place(name: str) -> str:
    """Return the absolute path of a folder; a Hub id is returned unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _require_same_kind(first: str | Path, one: SavedModel, second: str | Path, other: SavedModel) -> None:
    labels = {
        "tokenizer_hash": "tokenizers",
        "template_hash": "chat templates",
        "pad_token_id": "pad tokens",
        "format": "formatting rules",
    }
    wrong = [
        f"{label} ({getattr(one.record, name)} and {getattr(other.record, name)})"
        for name, label in labels.items()
        if getattr(one.record, name) != getattr(other.record, name)
    ]
    bases = [one.record.base_model, other.record.base_model]
    if None not in bases and len({_place(str(base)) for base in bases}) > 1:
        wrong.append(f"base models ({bases[0]} and {bases[1]})")
    shapes, other_shapes = (
        {name: tuple(value.shape) for name, value in each.model.state_dict().items()} for each in (one, other)
    )
    if shapes != other_shapes:
        wrong.append("names or shapes of the weights")
    if wrong:
        raise ValueError(
            f"{first} and {second} differ in their {', '.join(wrong)}. Only models that were fine-tuned from the "
            "same model in the same text format can be averaged."
        )
