"""Reward models of other programs -> stock classifiers with one label."""

from pathlib import Path
from typing import Protocol

from hf_reward.publishing.importers import linear_head, llama_factory, nemotron, openrlhf, trl_value_head, xtuner
from hf_reward.publishing.importers.conversion import ForeignModel, build_model
from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights
from hf_reward.publishing.importers.refusals import explain_no_match, refuse_other_heads

__all__ = ["FORMATS", "ForeignModel", "Importer", "detect_format", "read_foreign"]


class Importer(Protocol):
    """What a foreign layout offers: a module, or a value of `linear_head`."""

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether a folder is in this layout."""
        ...

    def convert(self, checkpoint: Checkpoint) -> ForeignWeights:
        """The folder's weights under stock names."""
        ...


FORMATS: dict[str, Importer] = {
    "llama_factory": llama_factory,
    "grm": linear_head.GRM,
    "trl": trl_value_head,
    "openrlhf": openrlhf,
    "deepspeed_chat": linear_head.DEEPSPEED_CHAT,
    "starling": linear_head.STARLING,
    "xtuner": xtuner,
    "ultrarm": linear_head.ULTRARM,
    "token_classifier": linear_head.TOKEN_CLASSIFIER,
    "nemotron": nemotron,
}
"""The importers by name, in the order in which they are tried."""


def detect_format(folder: str | Path, *, allow_pickle: bool = False) -> str:
    """Find out in which layout a folder is.

    Args:
        folder: A model folder.
        allow_pickle: Whether weights in pickles may be opened.

    Returns:
        One of `FORMATS`.

    Raises:
        ValueError: If it is in none of them, with what was found instead.
    """
    return _detect(Checkpoint(folder, allow_pickle=allow_pickle))


def read_foreign(
    folder: str | Path,
    format: str = "auto",
    *,
    base_model: str | Path | None = None,
    allow_pickle: bool = False,
) -> ForeignModel:
    """Read a reward model of another program as a stock classifier with one label.

    Nothing is read from the network, and no code that the folder brings is run.

    Args:
        folder: A model folder, or that of an adapter with a value head.
        format: One of `FORMATS`, or `auto` to find out.
        base_model: The model it was made from, a folder or a Hub id in the cache: for what the folder lacks of
            configuration and tokenizer, and instead of the base that an adapter names.
        allow_pickle: Whether weights in pickles (`.bin`, `.pt`, `.pth`) may be opened.

    Returns:
        The model in float32, its prepared tokenizer, and what to know about them.

    Raises:
        ValueError: If the folder is in another layout, incomplete or damaged, needs `allow_pickle`, or holds a head
            that stock classifiers cannot.
    """
    if format not in (*FORMATS, "auto"):
        raise ValueError(f"`format` must be 'auto' or one of {', '.join(FORMATS)}, but is {format!r}.")
    checkpoint = Checkpoint(folder, base_model=base_model, allow_pickle=allow_pickle)
    if format == "auto":
        format = _detect(checkpoint)
    else:
        refuse_other_heads(checkpoint)
    return build_model(checkpoint, FORMATS[format].convert(checkpoint), format)


def _detect(checkpoint: Checkpoint) -> str:
    refuse_other_heads(checkpoint)
    found = next((name for name, importer in FORMATS.items() if importer.matches(checkpoint)), None)
    if found is None:
        raise ValueError(explain_no_match(checkpoint, list(FORMATS)))
    return found
