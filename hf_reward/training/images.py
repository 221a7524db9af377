"""Images of a run: the image part of the model's processor, and stored features of a frozen vision tower.

Only imported for vision-language models.
"""

import tempfile
from pathlib import Path
from typing import Any

from hf_reward.data.interface import setting
from hf_reward.modeling.image_features import ImageFeatureStore, ReadsImages, freeze_vision, vision_parameters
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.preprocessing.image_inputs import ImageBatch, ImageProcessing
from hf_reward.training.training_args import RewardConfig


class RunImages:
    """Prepares a vision-language model for training with images.

    Args:
        model: The reward model; its vision tower is frozen in place unless `train_vision` is set.
        args: Settings of the run.
        processing: The image part of its processor.

    Raises:
        ValueError: If `train_vision` is set, but the tower is frozen.
    """

    def __init__(self, model: RewardModel, args: RewardConfig, processing: ImageProcessing) -> None:
        bare: Any = unwrap_model(model)
        self.processing = processing
        if not args.train_vision:
            freeze_vision(model)
        elif not any(parameter.requires_grad for parameter in vision_parameters(bare.base_model)):
            raise ValueError(
                f"`{setting('train_vision')}` trains the vision tower, but an adapter or `freeze_backbone` freezes it. "
                "Set one of them."
            )
        self.store = self._store(bare, args)
        self.batch = ImageBatch(self.processing, None if self.store is None else self.store.has)

    def _store(self, model: ReadsImages, args: RewardConfig) -> ImageFeatureStore | None:
        """Return a folder for the features of a frozen tower. It is removed with this object."""
        base: Any = model.base_model  # type: ignore[attr-defined]
        if any(parameter.requires_grad for parameter in vision_parameters(base)) or args.output_dir is None:
            return None
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="_image_features_", dir=args.output_dir)
        model.feature_store = ImageFeatureStore(Path(self._folder.name))
        return model.feature_store
