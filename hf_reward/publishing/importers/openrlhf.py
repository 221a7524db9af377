"""OpenRLHF's `RewardModel`: the backbone under its usual prefix, and a head whose name config.json gives."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

# Names of the head in checkpoints from before config.json gave it.
EARLIER_NAMES = ("value_head", "reward_head")


def matches(checkpoint: Checkpoint) -> bool:
    """Whether config.json names a head that the weights hold, or the head has one of the earlier names."""
    return _head(checkpoint) is not None


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone and the head, under stock names; a folder without a head is refused."""
    name = _head(checkpoint)
    if name is None:
        raise ValueError(
            f"{checkpoint.folder}/config.json names no head (`value_head_prefix`) that the weights hold, and there is "
            f"no {' or '.join(f'`{each}.weight`' for each in EARLIER_NAMES)}."
        )
    head = checkpoint.linear_head(name)
    backbone = checkpoint.backbone(f"{checkpoint.target.base_model_prefix}.", beside=(f"{name}.",))
    settings = checkpoint.settings
    facts = {key: settings[key] for key in ("mean", "std") if isinstance(settings.get(key), float | int)}
    notes = [
        "OpenRLHF strips newlines from the end of a text and then sees to it that it ends with EOS, where it reads the "
        "reward. If the chat template puts a newline behind EOS, remove it from the template."
    ]
    if facts:
        notes.append(
            f"config.json gives mean {facts.get('mean', 0):.6g} and std {facts.get('std', 1):.6g}, with which OpenRLHF "
            "normalises rewards when asked to. Rewards here are those before that."
        )
    return ForeignWeights(backbone=backbone, head=head, notes=notes, facts={"head": name, **facts})


def _head(checkpoint: Checkpoint) -> str | None:
    """Name of the head; a stock classifier that kept OpenRLHF's settings is none of its checkpoints any more."""
    name = checkpoint.settings.get("value_head_prefix")
    if name == "score" and any(arch.endswith("ForSequenceClassification") for arch in checkpoint.architectures):
        return None
    names = EARLIER_NAMES if name is None else (str(name),)
    return next((each for each in names if f"{each}.weight" in checkpoint.weights), None)
