"""Folder of a vision-language model -> its `ImageProcessing`."""

import inspect
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoModel, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils.hub import cached_file

from hf_reward.preprocessing.image_inputs import ImageProcessing

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Files of a processor besides those of its tokenizer. A saved model has copies of them."""
_PARTS = ("image_processor", "tokenizer")


def load_image_processing(
    name: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, **hub: Any
) -> ImageProcessing:
    """Load the image part of a model's processor. Videos are not supported, so torchvision is not needed.

    Args:
        name: Folder or Hub id with the files of the processor.
        config: The model's configuration.
        tokenizer: The model's tokenizer, which is used instead of the one in the folder.
        **hub: Options of the Hub, such as `revision`.

    Returns:
        The image part.

    Raises:
        ValueError: If the architecture has no processor in transformers, or the processor is not supported.
    """
    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"Images are not supported for {type(config).__name__}: transformers has no processor for it.")
    backbone: Any = AutoModel._model_mapping[type(config)]
    if "mm_encoder_outputs" not in inspect.signature(backbone.forward).parameters:
        raise ValueError(
            f"Images are not supported for {backbone.__name__} of this version of transformers, which takes no "
            "computed features. Use a model of docs/guides/images.md, with transformers 5.23 or later."
        )
    cls: Any = PROCESSOR_MAPPING[type(config)]
    values, _ = cls.get_processor_dict(name, **hub)
    names = set(inspect.signature(cls.__init__).parameters) - {"self", *_PARTS, "chat_template"}
    options = {option: value for option, value in values.items() if option in names}
    if "video_processor" in names:
        options["video_processor"] = None
    image_processor = AutoImageProcessor.from_pretrained(name, **hub)
    processor = _without_videos(cls)(image_processor=image_processor, tokenizer=tokenizer, **options)
    return ImageProcessing(processor, processor_files(name, **hub))


def _without_videos(cls: Any) -> Any:
    """Return a subclass of a processor with an image processor and a tokenizer only."""
    attributes = [name for name in cls.get_attributes() if name in _PARTS]
    return type(
        cls.__name__, (cls,), {"get_attributes": classmethod(lambda _: attributes), "__module__": cls.__module__}
    )


def processor_files(name: str, **hub: Any) -> dict[str, bytes]:
    """Return the contents of the processor's files in a folder or repository, by name."""
    options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, **hub}
    found = {file: cached_file(name, file, **options) for file in PROCESSOR_FILES}
    return {file: Path(path).read_bytes() for file, path in found.items() if path is not None}
