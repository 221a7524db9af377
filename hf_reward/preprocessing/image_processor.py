"""Folder of a vision-language model -> its `ImageProcessing`."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from transformers import AutoImageProcessor, AutoModel, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from hf_reward.preprocessing.image_inputs import ImageProcessing
from hf_reward.preprocessing.processor_files import processor_files

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
    return ImageProcessing(processor, _with_class(processor_files(name, **hub), cls.__name__))


def _without_videos(cls: Any) -> Any:
    """Return a subclass of a processor with an image processor and a tokenizer only."""
    attributes = [name for name in cls.get_attributes() if name in _PARTS]
    return type(
        cls.__name__, (cls,), {"get_attributes": classmethod(lambda _: attributes), "__module__": cls.__module__}
    )


def _with_class(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """Return files that name the processor's class, which `AutoProcessor` needs in the folder of an adapter."""
    if any("processor_class" in json.loads(content) for content in files.values()):
        return dict(files)
    content = json.loads(files.get("processor_config.json", b"{}"))
    named = json.dumps({**content, "processor_class": name}, indent=2) + "\n"
    return {**files, "processor_config.json": named.encode()}
