"""Model -> the image part of its processor, if it is a vision-language model."""

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.reward_head import RewardModel, has_vision, unwrap_model
from hf_reward.preprocessing.processor_files import processor_files

logger = logging.getLogger(__name__)


def load_images(model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the `ImageProcessing` of a vision-language model; None for a text model, or if it cannot be loaded.

    Args:
        model: The loaded model.
        tokenizer: Its tokenizer.

    Returns:
        The image part of the processor in the folder or repository of the model, or of an adapter's base. Without it,
        images are refused.
    """
    bare = unwrap_model(model)
    if not has_vision(bare):
        return None
    name, options = _place(bare)
    try:
        from hf_reward.preprocessing.image_processor import load_image_processing  # noqa: PLC0415 - not for text models

        return load_image_processing(name, bare.config, tokenizer, **options)
    except ImportError as error:  # texts can still be used
        problem = f"{error}. Install it with `pip install 'hf_reward[images]'`"
    except (OSError, ValueError) as error:
        problem = str(error)
    logger.warning("Images are refused, because the image processor of %s cannot be loaded: %s", name, problem)
    return None


def unloaded_processor(model: RewardModel) -> dict[str, bytes]:
    """Return the files of an image processor that `load_images` could not load; a copy of the model keeps them.

    Args:
        model: The loaded model.

    Returns:
        Contents by name; empty for a text model.
    """
    bare = unwrap_model(model)
    name, options = _place(bare)
    return processor_files(name, **options) if has_vision(bare) and name else {}


def _place(bare: Any) -> tuple[str, dict[str, Any]]:
    """Return name and Hub options of the processor's files: those of the loaded folder, or of an adapter's base."""
    loaded = getattr(bare, "processor_place", None)
    if loaded is not None and processor_files(loaded[0], **loaded[1]):
        return loaded
    return str(bare.name_or_path or ""), {}
