"""Several reward models -> the mean of their weights, which is steadier than each of them."""

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
    """Average the weights of reward models that were fine-tuned from one model.

    Args:
        sources: Two or more folders or Hub ids; adapters are merged first.
        folder: Where to.
        rule: How to write it.
        allow_pickle: Read weights that are pickles, tensors only.
        overwrite: Replace a folder that is there.

    Returns:
        What was written, verified.

    Raises:
        ValueError: If the models do not fit together; the message names what differs.

    Source:
        Ramé et al. (2024), "WARM: On the Benefits of Weight Averaged Reward Models", equation 2.
    """
    rule = rule or ExportRule()
    if len(sources) < 2:
        raise ValueError(f"An average needs two models or more, but got {len(sources)}.")
    require_free(Path(folder), overwrite)
    how: dict[str, Any] = {"allow_pickle": allow_pickle, "trust_remote_code": rule.trust_remote_code}
    mean = load_saved(sources[0], **how)
    rewards = [mean.rewards]
    mean = as_plain(mean)
    parameters = dict(mean.model.named_parameters())  # tied ones once
    for count, source in enumerate(sources[1:], start=2):
        member = load_saved(source, **how)
        rewards.append(member.rewards)
        member = as_plain(member)
        _require_same_kind(sources[0], mean, source, member)
        with torch.no_grad():
            for name, value in member.model.named_parameters():
                parameters[name].add_((value - parameters[name]) / count)
    note = f"Average of {len(sources)} models. Its evaluation is not that of any of them: evaluate it again."
    mean = replace(mean.changed(mean.model), changes=RewardChanges(notes=[note]))
    for name, before in zip(_short_names(sources), rewards, strict=True):
        mean.note_change(f"from {name} to the average", before)
    origin = {"averaged": [str(source) for source in sources]}
    own = {"steps": None, "command": None}  # each member has its own
    mean.record = replace(
        mean.record,
        evaluation={},
        calibration={},
        length_correction={},
        reward_statistics={},
        training={**mean.record.training, **own},
        origin=origin,
    )
    return write_verified(mean, folder, rule)


def _short_names(sources: Sequence[str | Path]) -> list[str]:
    """The last parts of their paths, where that tells them apart."""
    short = [Path(source).name for source in sources]
    return short if len(set(short)) == len(short) else [str(source) for source in sources]


def _place(name: str) -> str:
    """One spelling of a folder's path; a Hub id as it is."""
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
        wrong.append("weights' names or shapes")
    if wrong:
        raise ValueError(
            f"{first} and {second} differ in their {', '.join(wrong)}. Only models fine-tuned from the same model, in "
            "the same format, can be averaged."
        )
