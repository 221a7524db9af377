"""Model -> the image part of its processor, if it is a vision-language model."""

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.model_place import hub_options, resolve_model
from hf_reward.modeling.reward_head import RewardModel, has_vision, unwrap_model

logger = logging.getLogger(__name__)


def load_images(model: RewardModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None, **options: Any) -> Any:
    """Return the `ImageProcessing` of a vision-language model; None for a text model, or without its files.

    Args:
        model: The loaded model.
        tokenizer: Its tokenizer.
        name: Folder or Hub id with the files of the processor, by default that of the model or of an adapter's base.
        **options: Options with which the model was loaded.

    Returns:
        The image part of the processor. Without it, images are refused.
    """
    bare = unwrap_model(model)
    name = name or bare.name_or_path
    if not has_vision(bare) or not name:
        return None
    from hf_reward.preprocessing.image_processor import load_image_processing  # noqa: PLC0415 - not for text models

    name, options = resolve_model(name, **options)
    try:
        return load_image_processing(name, bare.config, tokenizer, **hub_options(options))
    except (OSError, ValueError, ImportError) as error:  # texts can still be used
        logger.warning("Images are refused, because the image processor of %s cannot be loaded: %s", name, error)
        return None
