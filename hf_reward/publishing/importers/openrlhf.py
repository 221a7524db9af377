"""OpenRLHF's `RewardModel`: the backbone with its usual prefix; config.json contains the name of the head."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

# Names of the head in older checkpoints without `value_head_prefix`.
EARLIER_NAMES = ("value_head", "reward_head")


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether the weights contain the head that config.json names, or a head with an earlier name."""
    return _head(checkpoint) is not None


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """Return the backbone and the head under stock names. A folder without a head is refused."""
    name = _head(checkpoint)
    if name is None:
        raise ValueError(
            f"A model in the openrlhf format requires a reward head, but the weights in {checkpoint.folder} contain "
            "neither the `value_head_prefix` of config.json nor "
            f"{' or '.join(f'`{each}.weight`' for each in EARLIER_NAMES)}."
        )
    head = checkpoint.linear_head(name)
    backbone = checkpoint.backbone(f"{checkpoint.target.base_model_prefix}.", other=(f"{name}.",))
    settings = checkpoint.settings
    facts = {key: settings[key] for key in ("mean", "std") if isinstance(settings.get(key), float | int)}
    notes = [
        "OpenRLHF removes newlines at the end of a text, adds EOS if it is missing, and computes the reward at EOS. If "
        "the chat template adds a newline after EOS, remove it from the template."
    ]
    if facts:
        notes.append(
            f"OpenRLHF can normalise rewards with the mean {facts.get('mean', 0):.6g} and standard deviation "
            f"{facts.get('std', 1):.6g} in config.json. The rewards of this model are not normalised."
        )
    return ForeignWeights(backbone=backbone, head=head, notes=notes, facts={"head": name, **facts})


def _head(checkpoint: Checkpoint) -> str | None:
    """Return the name of the head, or None. A stock classifier that only kept OpenRLHF's settings has none."""
    name = checkpoint.settings.get("value_head_prefix")
    if name == "score" and any(arch.endswith("ForSequenceClassification") for arch in checkpoint.architectures):
        return None
    names = EARLIER_NAMES if name is None else (str(name),)
    return next((each for each in names if f"{each}.weight" in checkpoint.weights), None)
