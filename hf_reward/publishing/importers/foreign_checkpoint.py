"""A folder in a foreign layout, and the weights that importers find in it.

An importer says which tensor is the head and under which prefix the backbone lies. Renaming, reading and every check of
the folder are here, and the stock classifier is made in `conversion`, so all layouts are held to the same rules.
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
from hf_reward.modeling.reward_head import is_decoder, state_regression
from hf_reward.modeling.weight_safety import require_safe_weights
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.publishing.importers.weight_files import WeightFiles, main_weight_files

LAST_TOKEN = "last attended token"
BEFORE_FIRST_PAD = "last token before the first pad token"
LANGUAGE_MODEL_HEADS = ("lm_head.", "embed_out.")
VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")

USE_INSTEAD = (
    "Score with the model's own code (`trust_remote_code=True`); for a stock model with its judgement, train one on "
    "responses that it rated."
)

_COUNTS = ("num_labels", "num_hidden_layers", "num_layers", "n_layer", "n_layers")
_LARGEST = 100_000
_UNKNOWN_WORD = "\U0010fffd"
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# What only the foreign code reads; a saved `auto_map` would even send stock transformers back to that code.
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
    """A head that is one linear layer with one output."""

    weight: Tensor
    """Shape `(1, H)`."""
    bias: float = 0.0


@dataclass(kw_only=True)
class ForeignWeights:
    """What an importer found in a checkpoint."""

    backbone: dict[str, Tensor]
    """The backbone's weights under the names of the stock class."""
    head: LinearHead
    reads: str = LAST_TOKEN
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Checkpoint:
    """A model folder. Nothing is read before it is asked for, and nothing from the network.

    Args:
        folder: The folder.
        base_model: Where configuration, tokenizer and, for an adapter, the base's weights come from if not from the
            folder: another folder, or a Hub id that is in the cache.
        allow_pickle: Whether to open weights in pickles.

    Raises:
        ValueError: If there is no such folder.
    """

    def __init__(self, folder: str | Path, *, base_model: str | Path | None = None, allow_pickle: bool = False) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder} is no folder. Download the model first and give the folder's path.")
        self.base_model = None if base_model is None else str(base_model)
        self.allow_pickle = allow_pickle

    @cached_property
    def weights(self) -> WeightFiles:
        """The tensors of the folder's main weight files."""
        return WeightFiles(main_weight_files(self.folder), allow_pickle=self.allow_pickle)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of config.json as it stands, empty without one."""
        path = self.folder / "config.json"
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}). Take it from a fresh copy.") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no model configuration. Take it from a fresh copy.")
        if content.get("transformers_weights") is not None:
            raise ValueError(
                f"{path} names the file of its weights (`transformers_weights`), which no layout here does. Name that "
                "file model.safetensors and remove the setting."
            )
        huge = [name for name in _COUNTS if isinstance(content.get(name), int | float) and content[name] > _LARGEST]
        if huge:  # transformers makes a list of that length while it reads the file
            raise ValueError(f"{path} has `{huge[0]}` above {_LARGEST:,}. Take it from a fresh copy.")
        return content

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter of PEFT."""
        return (self.folder / "adapter_config.json").is_file()

    @property
    def architectures(self) -> list[str]:
        """Class names in config.json, none if what stands there is no list."""
        names = self.settings.get("architectures")
        return [str(name) for name in names] if isinstance(names, list) else []

    @cached_property
    def config(self) -> PretrainedConfig:
        """The configuration for a stock classifier with one label, without foreign settings."""
        source = str(self.folder) if self.settings else self._base
        if source is None:
            raise ValueError(f"{self.folder} holds no config.json. Name the model it was made from: `base_model`.")
        try:
            config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever a value of another kind leads to
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"The configuration of {source} (model_type={self.settings.get('model_type')!r}) is none that "
                f"transformers itself can read, so no stock class holds this model: {reason} "
                f"{USE_INSTEAD}"
            ) from error
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(f"The weights of {source} are quantised. Import the model from before quantisation.")
        for name in _FOREIGN_SETTINGS:
            if name in config.__dict__:
                delattr(config, name)
        state_regression(config)
        return config

    @cached_property
    def target(self) -> PreTrainedModel:
        """The stock classifier without weights."""
        stock = classifier_class(self.config)
        self._require_layers()
        try:
            with torch.device("meta"):
                target: Any = stock(self.config)
        except Exception as error:  # sizes that do not go together, or that no tensor can have
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"The configuration of {self.folder} makes no {stock.__name__}: {reason}") from error
        if not is_decoder(target):
            raise ValueError(
                f"{stock.__name__} is no decoder with a linear `score`, and foreign layouts are those of decoders. "
                "Load encoders with `AutoModelForRewardScoring.from_pretrained`."
            )
        return target

    def _require_layers(self) -> None:
        """Stop at a configuration with more layers than there are tensors, before they are made."""
        layers, tensors = getattr(self.config.get_text_config(), "num_hidden_layers", 0), len(self.weights)
        if not self.is_adapter and isinstance(layers, int) and layers > tensors:
            raise ValueError(
                f"{self.folder}/config.json says that the model has {layers} layers, but there are {tensors} tensors. "
                "Take both from a fresh copy."
            )

    @cached_property
    def head_files(self) -> WeightFiles | None:
        """The tensors of a value head saved in a file of its own, None without one."""
        paths = [self.folder / name for name in VALUE_HEAD_FILES if (self.folder / name).is_file()]
        return WeightFiles(paths[:1], allow_pickle=self.allow_pickle) if paths else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The prepared tokenizer, with a pad token at which no sequence is read."""
        source = str(self.folder) if _has_tokenizer(self.folder) else self._base
        if source is None:
            raise ValueError(f"{self.folder} holds no tokenizer. Name the model it was made from: `base_model`.")
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises plain `Exception`s
            raise ValueError(f"The tokenizer of {source} cannot be loaded: {error!r}") from error
        # As pad token, the unknown token would hide an unknown word at the end of a text. Byte-level tokenizers and
        # those that fall back to bytes never give it, so there it may stay, as Starling has it.
        if tokenizer.pad_token_id in tokenizer(_UNKNOWN_WORD, add_special_tokens=False)["input_ids"]:
            tokenizer.pad_token = None
        return prepare_tokenizer(tokenizer)

    @cached_property
    def _base(self) -> str | None:
        """Name of the model this one was made from: the caller's word, else the adapter's."""
        if self.base_model is not None or not self.is_adapter:
            return self.base_model
        try:
            return PeftConfig.from_pretrained(str(self.folder)).base_model_name_or_path
        except Exception as error:
            raise ValueError(f"{self.folder}/adapter_config.json is no adapter of PEFT: {error!r}") from error

    def linear_head(self, name: str, weights: Mapping[str, Tensor] | None = None) -> LinearHead:
        """Read a head that is one linear layer with one output.

        Args:
            name: Name of the layer.
            weights: Where it lies if not among the model's weights.

        Returns:
            The head.

        Raises:
            ValueError: If there is no such layer, or it has several outputs.
        """
        weights = self.weights if weights is None else weights
        if f"{name}.weight" not in weights:
            raise ValueError(f"{self.folder} holds no `{name}.weight`, the reward head of this layout.")
        weight = weights[f"{name}.weight"]
        if weight.ndim != 2 or weight.shape[0] != 1:
            raise ValueError(
                f"`{name}.weight` in {self.folder} has shape {tuple(weight.shape)}; a head that gives one reward has "
                "shape (1, H). Heads with several outputs fit no stock reward model."
            )
        bias = weights.get(f"{name}.bias")
        return LinearHead(weight=weight, bias=0.0 if bias is None else bias.item())

    def backbone(self, prefix: str, *, beside: tuple[str, ...]) -> dict[str, Tensor]:
        """The backbone's weights under the stock class's names.

        Args:
            prefix: How their keys start here, with the dot.
            beside: How other keys of this layout start. Unknown ones are refused: they may be part of the head.

        Returns:
            The tensors.

        Raises:
            ValueError: If there are none, or keys that the layout does not have.
        """
        if not self.weights:
            raise ValueError(f"{self.folder} holds no weights. Copy the whole model.")
        inside = [key for key in self.weights if key.startswith(prefix)]
        other = [key for key in self.weights if not key.startswith((prefix, *beside, *LANGUAGE_MODEL_HEADS))]
        if not inside or other:
            found = ", ".join(other[:5] or list(self.weights)[:5])
            raise ValueError(
                f"{self.folder} is in another layout: the backbone should lie under `{prefix}`, but there is {found}."
            )
        stem = f"{self.target.base_model_prefix}."
        return {stem + key.removeprefix(prefix): self.weights[key] for key in inside}

    def merged_backbone(self) -> dict[str, Tensor]:
        """The backbone's weights of a base model with this folder's adapter merged into it, in float32.

        Returns:
            The tensors under the stock class's names.

        Raises:
            ValueError: If base or adapter cannot be loaded, or lie in pickles.
        """
        if self._base is None:
            raise ValueError(f"{self.folder}/adapter_config.json names no base model. Give `base_model`.")
        require_safe_weights(self.folder, allow_pickle=self.allow_pickle, local_files_only=True)
        stem = f"{self.target.base_model_prefix}."  # refuses quantised bases, before they are loaded
        options: dict[str, Any] = {} if self.allow_pickle else {"use_safetensors": True}
        try:
            require_safe_weights(self._base, allow_pickle=self.allow_pickle, local_files_only=True)
            language_model = AutoModelForCausalLM.from_pretrained(
                self._base, dtype=torch.float32, local_files_only=True, trust_remote_code=False, **options
            )
            adapted: Any = PeftModel.from_pretrained(language_model, str(self.folder))
        except Exception as error:
            raise ValueError(
                f"The adapter in {self.folder} cannot be put on its base {self._base}: {error}\n"
                "If the base lies elsewhere, give its folder as `base_model`."
            ) from error
        if adapted.active_peft_config.is_prompt_learning:
            raise ValueError(f"The adapter in {self.folder} adds virtual tokens and cannot be merged into a model.")
        merged = adapted.merge_and_unload()
        return {stem + key: tensor for key, tensor in merged.base_model.state_dict().items()}


def _has_tokenizer(folder: Path) -> bool:
    # Without vocabulary, transformers can make an empty tokenizer from the rest, which would encode nothing.
    return any((folder / name).is_file() for name in _VOCABULARIES)
