"""Convert reward models from other libraries to stock classifiers with one label."""

from pathlib import Path
from typing import Protocol

from hf_reward.publishing.importers import linear_head, llama_factory, nemotron, openrlhf, trl_value_head, xtuner
from hf_reward.publishing.importers.conversion import ForeignModel, build_model
from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights
from hf_reward.publishing.importers.refusals import explain_no_match, refuse_other_heads

__all__ = ["FORMATS", "ForeignModel", "Importer", "detect_format", "read_foreign"]


class Importer(Protocol):
    """Interface of an importer: a module, or a value of `linear_head`."""

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether a folder has this layout."""
        ...

    def convert(self, checkpoint: Checkpoint) -> ForeignWeights:
        """Return the weights of the folder under stock names."""
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
"""Importers by name, in the order in which they are tried."""


def detect_format(folder: str | Path, *, allow_pickle: bool = False) -> str:
    """Detect the layout of a folder.

    Args:
        folder: A model folder.
        allow_pickle: Whether to read pickled weights (tensors only).

    Returns:
        One of `FORMATS`.

    Raises:
        ValueError: If no layout matches; the message describes the content of the folder.
    """
    return _detect(Checkpoint(folder, allow_pickle=allow_pickle))


def read_foreign(
    folder: str | Path,
    format: str = "auto",
    *,
    base_model: str | Path | None = None,
    allow_pickle: bool = False,
) -> ForeignModel:
    """Load a reward model from another library as a stock classifier with one label.

    The network is not used, and code in the folder is not run.

    Args:
        folder: A model folder, or the folder of an adapter with a value head.
        format: One of `FORMATS`, or `auto` to detect it.
        base_model: The model that it was fine-tuned from, as a folder or a cached Hub id. It provides configuration
            and tokenizer if the folder has none, and replaces the base of an adapter.
        allow_pickle: Whether to read pickled weights (`.bin`, `.pt`, `.pth`; tensors only).

    Returns:
        The model in float32 with its prepared tokenizer and notes on its rewards.

    Raises:
        ValueError: If the folder has another layout, is incomplete or damaged, requires `allow_pickle`, or has a head
            that stock classifiers do not support.
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
