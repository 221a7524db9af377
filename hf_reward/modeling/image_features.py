"""Vision-language reward models: features of each distinct image of a batch -> hidden states.

A frozen vision tower computes one image at a time, so the features of an image do not depend on the batch, and they are
stored in a folder: each image is computed once in a run. A trained tower computes the images of a batch together if
their tensors fit. The architecture's own forward places the features in the text.

Shapes: P image tokens of the batch, H hidden size.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_reward.data.atomic_file import replacing
from hf_reward.modeling.reward_head import ReadsLastToken, unwrap_model

logger = logging.getLogger(__name__)


class ReadsImages(ReadsLastToken):
    """Mixin for decoders with images.

    `forward` also takes the image entries of `ImageBatch.complete`. With the inputs of a processor (`pixel_values` and
    others) it computes what the stock class computes.
    """

    feature_store: "ImageFeatureStore | None" = None
    """Stored features, for a frozen vision tower."""
    processor_place: tuple[str, dict[str, Any]] | None = None
    """Folder or Hub id from which the model or its adapter was loaded, with Hub options."""

    def backbone_outputs(
        self,
        *,
        image_inputs: Sequence[Mapping[str, Any]] | None = None,
        image_index: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Run the backbone.

        Args:
            image_inputs: Tensors of each distinct image for the vision tower, and its `key`.
            image_index: Feature of each image token, shape `(P,)`.
            **inputs: Other inputs of the backbone.

        Returns:
            Its outputs.
        """
        if image_inputs is not None and image_index is not None:
            inputs["mm_encoder_outputs"] = {"image": self._image_outputs(image_inputs, image_index)}
        return super().backbone_outputs(**inputs)

    def _image_outputs(self, image_inputs: Sequence[Mapping[str, Any]], image_index: Tensor) -> Any:
        """Return what the tower would return for the images of all image tokens."""
        base: Any = self.base_model  # type: ignore[attr-defined]
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in vision_parameters(base))
        parts = _together(image_inputs) if trained else image_inputs
        found = [image_features(base, inputs, None if trained else self.feature_store) for inputs in parts]
        columns = [torch.cat(parts)[image_index] for parts in zip(*found, strict=True)]
        return _ImageOutput(_Features([columns[0]]), [[column] for column in columns[1:]])


def _together(image_inputs: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Concatenate the tensors of images if they differ in their first size only; otherwise return them unchanged."""
    tensors = [{name: value for name, value in each.items() if isinstance(value, Tensor)} for each in image_inputs]
    shapes = [{name: value.shape[1:] for name, value in each.items()} for each in tensors]
    if any(shape != shapes[0] for shape in shapes):
        return image_inputs
    return [{name: torch.cat([each[name] for each in tensors]) for name in tensors[0]}]


def vision_parameters(backbone: Any) -> list[nn.Parameter]:
    """Return the parameters of a backbone that compute image features: all except those of its language model."""
    text = {id(parameter) for parameter in backbone.get_decoder().parameters()}
    return [parameter for parameter in backbone.parameters() if id(parameter) not in text]


def freeze_vision(model: nn.Module) -> None:
    """Freeze the vision tower and its projector, in place."""
    bare: Any = unwrap_model(model)
    for parameter in vision_parameters(bare.base_model):
        parameter.requires_grad_(False)


def image_features(backbone: Any, inputs: Mapping[str, Any], store: "ImageFeatureStore | None") -> list[Tensor]:
    """Compute or load the features of one image.

    Args:
        backbone: A vision-language backbone of transformers.
        inputs: Tensors for its `get_image_features`, and the `key` of the image.
        store: Where features of a frozen tower are stored.

    Returns:
        The features in the order of the image tokens, shape `(tokens, H)`, and after them those for deeper layers.
    """
    device = next(backbone.get_decoder().parameters()).device
    if store is not None and (stored := store.load(inputs["key"])) is not None:
        return [tensor.to(device) for tensor in stored]
    names = inspect.signature(type(backbone).get_image_features).parameters
    given = {name: value for name, value in inputs.items() if name in names}
    with torch.set_grad_enabled(torch.is_grad_enabled() and store is None):
        output = backbone.get_image_features(**given, return_dict=True)
    deeper = getattr(output, "deepstack_features", None) or []
    features = [_flat(each) for each in (output.pooler_output, *deeper)]
    if store is not None:
        store.save(inputs["key"], features)
    return features


def _flat(features: Any) -> Tensor:
    """Return features, one or several tensors of any shape `(..., H)`, as one matrix."""
    parts = features if isinstance(features, (list, tuple)) else [features]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


class _Features(list[Tensor]):
    """Features in a list, which some architectures concatenate and others treat as a tensor."""

    def to(self, *options: Any) -> Tensor:
        """Convert the features, as `Tensor.to`."""
        return torch.cat(self).to(*options)


@dataclass
class _ImageOutput:
    """The attributes of a tower's output that the architectures read."""

    pooler_output: Any
    deepstack_features: list[list[Tensor]]


class ImageFeatureStore:
    """Features of images in a folder, up to a size.

    Args:
        folder: The folder. It belongs to one frozen vision tower in one precision.
        max_bytes: When the files have this size, no more are added.
    """

    def __init__(self, folder: Path, max_bytes: int = 20 * 2**30) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._used = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        self._is_full = False

    def has(self, key: str) -> bool:
        """Return whether the features of an image are stored."""
        return self._file(key).is_file()

    def load(self, key: str) -> list[Tensor] | None:
        """Return the features of an image, or None if they are not stored."""
        if not self.has(key):
            return None
        tensors = load_file(self._file(key))
        return [tensors[str(place)] for place in range(len(tensors))]

    def save(self, key: str, features: Sequence[Tensor]) -> None:
        """Store the features of an image unless the folder is full."""
        size = sum(each.numel() * each.element_size() for each in features)
        if self._used + size > self.max_bytes:
            if not self._is_full:
                logger.warning(
                    "The features of %s images fill %.1f GB. Those of other images are computed in each epoch.",
                    sum(1 for _ in self.folder.glob("*.safetensors")),
                    self._used / 2**30,
                )
            self._is_full = True
            return
        tensors = {str(place): each.detach().cpu().contiguous() for place, each in enumerate(features)}
        with replacing(self._file(key)) as temporary:
            save_file(tensors, temporary)
        self._used += size

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
