"""A model folder from another library, and the weights that importers find in it.

An importer names the tensor of the head and the prefix of the backbone. This module reads, renames and checks the
weights; `conversion` builds the stock classifier. All layouts share these checks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_reward.modeling.architectures import classifier_class
from hf_reward.modeling.reward_head import is_decoder, set_regression
from hf_reward.modeling.weight_safety import require_safe_weights
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.publishing.importers.weight_files import WeightFiles, main_weight_files

LAST_TOKEN = "last attended token"
BEFORE_FIRST_PAD = "last token before the first pad token"
LANGUAGE_MODEL_HEADS = ("lm_head.", "embed_out.")
VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")

USE_INSTEAD = (
    "Score with the code of the model (`trust_remote_code=True`), or train a stock reward model on responses that it "
    "has rated."
)

_COPY_AGAIN = "Copy the model again from its source."
_COUNTS = ("num_labels", "num_hidden_layers", "num_layers", "n_layer", "n_layers")
_LARGEST = 100_000
_UNKNOWN_WORD = "\U0010fffd"
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# Settings that only the other library uses. A saved `auto_map` would make stock transformers load its code.
_FOREIGN_SETTINGS = (
    "auto_map",
    "custom_pipelines",
    "value_head_prefix",
    "normalize_reward",
    "vhead_layer_type",
    "vhead_num_neurons",
    "vhead_num_layers",
    "reward_token_id",
)


@dataclass(kw_only=True)
class LinearHead:
    """A head with one linear layer and one output."""

    weight: Tensor
    """Shape `(1, H)`."""
    bias: float = 0.0


@dataclass(kw_only=True)
class ForeignWeights:
    """Weights that an importer found in a checkpoint."""

    backbone: dict[str, Tensor]
    """Weights of the backbone under the names of the stock class."""
    head: LinearHead
    reads: str = LAST_TOKEN
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Checkpoint:
    """A model folder, read lazily and without network access.

    Args:
        folder: The folder.
        base_model: Source of configuration and tokenizer if the folder has none, and of the base of an adapter: a
            folder, or a cached Hub id.
        allow_pickle: Whether to read pickled weights (tensors only).

    Raises:
        ValueError: If there is no such folder.
    """

    def __init__(self, folder: str | Path, *, base_model: str | Path | None = None, allow_pickle: bool = False) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"There is no folder {folder}. Download the model first and give the path of its folder.")
        self.base_model = None if base_model is None else str(base_model)
        self.allow_pickle = allow_pickle

    @cached_property
    def weights(self) -> WeightFiles:
        """The tensors of the folder's main weight files."""
        return WeightFiles(main_weight_files(self.folder), allow_pickle=self.allow_pickle)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Unchanged content of config.json, empty without one."""
        path = self.folder / "config.json"
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}). {_COPY_AGAIN}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a model configuration. {_COPY_AGAIN}")
        if content.get("transformers_weights") is not None:
            raise ValueError(
                f"{path} sets `transformers_weights`, which imports do not support. Rename the file with the weights "
                "to model.safetensors and remove the setting."
            )
        huge = [name for name in _COUNTS if isinstance(content.get(name), int | float) and content[name] > _LARGEST]
        if huge:  # transformers creates a list of that length when it loads the file
            raise ValueError(f"`{huge[0]}` in {path} must be at most {_LARGEST:,}, but is larger. {_COPY_AGAIN}")
        return content

    @property
    def is_adapter(self) -> bool:
        """Whether the folder contains a PEFT adapter."""
        return (self.folder / "adapter_config.json").is_file()

    @property
    def architectures(self) -> list[str]:
        """Class names in config.json; empty if the value is not a list."""
        names = self.settings.get("architectures")
        return [str(name) for name in names] if isinstance(names, list) else []

    @cached_property
    def config(self) -> PretrainedConfig:
        """Configuration of a stock classifier with one label, without settings of the other library."""
        source = str(self.folder) if self.settings else self._base
        if source is None:
            raise ValueError(f"{self.folder} has no config.json. Pass the base model as `base_model`.")
        try:
            config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises errors of many types for invalid values
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"An import requires a model that stock transformers supports, but the configuration of {source} "
                f"(model_type={self.settings.get('model_type')!r}) cannot be loaded: {reason} {USE_INSTEAD}"
            ) from error
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(
                f"An import requires weights that are not quantised, but those of {source} are. Import the original "
                "model."
            )
        for name in _FOREIGN_SETTINGS:
            if name in config.__dict__:
                delattr(config, name)
        set_regression(config)
        return config

    @cached_property
    def target(self) -> PreTrainedModel:
        """The stock classifier without weights."""
        stock = classifier_class(self.config)
        self._require_layers()
        try:
            with torch.device("meta"):
                target: Any = stock(self.config)
        except Exception as error:  # inconsistent or impossible sizes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{stock.__name__} cannot be built from the configuration of {self.folder}: {reason}"
            ) from error
        if not is_decoder(target):
            raise ValueError(
                f"An import requires a decoder with a linear `score` layer, but {stock.__name__} is not one. Load "
                "encoders with `AutoModelForRewardScoring.from_pretrained`."
            )
        return target

    def _require_layers(self) -> None:
        """Refuse a configuration with more layers than tensors before the layers are created."""
        layers, tensors = getattr(self.config.get_text_config(), "num_hidden_layers", 0), len(self.weights)
        if not self.is_adapter and isinstance(layers, int) and layers > tensors:
            raise ValueError(
                f"{self.folder}/config.json describes a model with {layers} layers, but there are only {tensors} "
                f"tensors. {_COPY_AGAIN}"
            )

    @cached_property
    def head_files(self) -> WeightFiles | None:
        """Tensors of a value head in a separate file, or None."""
        paths = [self.folder / name for name in VALUE_HEAD_FILES if (self.folder / name).is_file()]
        return WeightFiles(paths[:1], allow_pickle=self.allow_pickle) if paths else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The prepared tokenizer, with a pad token that never ends a text."""
        source = str(self.folder) if _has_tokenizer(self.folder) else self._base
        if source is None:
            raise ValueError(f"{self.folder} has no tokenizer. Pass the base model as `base_model`.")
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises plain `Exception`s
            raise ValueError(f"The tokenizer of {source} cannot be loaded: {error!r}") from error
        # If the unknown token is the pad token, an unknown word at the end of a text would be ignored. Tokenizers with
        # byte fallback never produce the unknown token, so they can keep it as pad token (Starling does).
        if tokenizer.pad_token_id in tokenizer(_UNKNOWN_WORD, add_special_tokens=False)["input_ids"]:
            tokenizer.pad_token = None
        return prepare_tokenizer(tokenizer)

    @cached_property
    def _base(self) -> str | None:
        """Base model: the caller's value, otherwise the base of the adapter."""
        if self.base_model is not None or not self.is_adapter:
            return self.base_model
        try:
            return PeftConfig.from_pretrained(str(self.folder)).base_model_name_or_path
        except Exception as error:
            raise ValueError(
                f"{self.folder}/adapter_config.json is not the configuration of a PEFT adapter: {error!r}"
            ) from error

    def linear_head(self, name: str, weights: Mapping[str, Tensor] | None = None) -> LinearHead:
        """Load a head with one linear layer and one output.

        Args:
            name: Name of the layer.
            weights: Tensors of the head, if they are in a separate file.

        Returns:
            The head.

        Raises:
            ValueError: If the layer is missing or has several outputs.
        """
        weights = self.weights if weights is None else weights
        if f"{name}.weight" not in weights:
            raise ValueError(f"This layout requires the reward head `{name}.weight`, but {self.folder} has none.")
        weight = weights[f"{name}.weight"]
        if weight.ndim != 2 or weight.shape[0] != 1:
            raise ValueError(
                f"The reward head must have shape (1, H), but `{name}.weight` in {self.folder} has shape "
                f"{tuple(weight.shape)}. Heads with several outputs are not supported."
            )
        bias = weights.get(f"{name}.bias")
        return LinearHead(weight=weight, bias=0.0 if bias is None else bias.item())

    def backbone(self, prefix: str, *, other: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the weights of the backbone under the names of the stock class.

        Args:
            prefix: Prefix of the backbone's keys, with the dot.
            other: Prefixes of the other keys of this layout. Unknown keys are refused: they may belong to the head.

        Returns:
            The tensors.

        Raises:
            ValueError: If there are no weights, or unknown keys.
        """
        if not self.weights:
            raise ValueError(f"{self.folder} contains no weights. {_COPY_AGAIN}")
        inside = [key for key in self.weights if key.startswith(prefix)]
        unknown = [key for key in self.weights if not key.startswith((prefix, *other, *LANGUAGE_MODEL_HEADS))]
        if not inside or unknown:
            found = ", ".join(unknown[:5] or list(self.weights)[:5])
            raise ValueError(
                f"{self.folder} has another layout: keys of the backbone must start with `{prefix}`, but found {found}."
            )
        stem = f"{self.target.base_model_prefix}."
        return {stem + key.removeprefix(prefix): self.weights[key] for key in inside}

    def merged_backbone(self) -> dict[str, Tensor]:
        """Merge the adapter of this folder into its base model in float32, and return the weights of the backbone.

        Returns:
            The tensors under the names of the stock class.

        Raises:
            ValueError: If base or adapter cannot be loaded, or are pickles.
        """
        if self._base is None:
            raise ValueError(
                f"An adapter requires a base model, but {self.folder}/adapter_config.json names none. Pass "
                "`base_model`."
            )
        require_safe_weights(self.folder, allow_pickle=self.allow_pickle, local_files_only=True)
        stem = f"{self.target.base_model_prefix}."  # also refuses quantised bases before they are loaded
        options: dict[str, Any] = {} if self.allow_pickle else {"use_safetensors": True}
        try:
            require_safe_weights(self._base, allow_pickle=self.allow_pickle, local_files_only=True)
            language_model = AutoModelForCausalLM.from_pretrained(
                self._base, dtype=torch.float32, local_files_only=True, trust_remote_code=False, **options
            )
            adapted: Any = PeftModel.from_pretrained(language_model, str(self.folder))
        except Exception as error:
            raise ValueError(
                f"The adapter in {self.folder} cannot be loaded on its base {self._base}: {error}\n"
                "If the base is in another folder, give that folder as `base_model`."
            ) from error
        if adapted.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"The adapter in {self.folder} uses virtual tokens (prompt learning), which cannot be merged."
            )
        merged = adapted.merge_and_unload()
        return {stem + key: tensor for key, tensor in merged.base_model.state_dict().items()}


def _has_tokenizer(folder: Path) -> bool:
    # Without a vocabulary, transformers may build an empty tokenizer from the other files.
    return any((folder / name).is_file() for name in _VOCABULARIES)
