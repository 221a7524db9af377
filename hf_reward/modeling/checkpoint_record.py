"""The record of a saved model: `reward_config.json`.

It describes how texts are tokenized, where the reward is computed, and the scale of the rewards. hf_reward uses it to
reproduce rewards; other programs ignore it, and loading the weights does not require it.

Values found after training (a temperature, a length correction) are stored by editing the JSON file directly. Loading
and saving a `CheckpointRecord` would lose fields of later versions.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_origin

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from hf_reward.data.atomic_file import write_atomic
from hf_reward.data.path_safety import require_folder_or_hub_id
from hf_reward.metrics.length_correction import LengthCorrection
from hf_reward.modeling.head_ensemble import number_of_heads
from hf_reward.modeling.probes import probe_record, weight_dtype
from hf_reward.modeling.reward_head import reads_positions, unwrap_model
from hf_reward.modeling.weight_safety import adapter_settings, optional_file
from hf_reward.preprocessing.tokenization import FormatRule

FILE_NAME = "reward_config.json"
_MAY_LACK: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}


@dataclass(kw_only=True)
class CheckpointRecord:
    """The content of `reward_config.json`."""

    format: dict[str, Any]
    """The fields of `FormatRule`."""
    reads: str
    """`last_token` for decoders, `pooled` for encoders."""
    pad_token_id: int | None
    template_hash: str | None
    """SHA-256 of the chat template, None without one."""
    tokenizer_hash: str
    reward_heads: int = 1
    """Number of heads. If there are several, the saved head is their mean; see `head_ensemble`."""
    rows: str | None = None
    """Form of the training data: `conversations`, `text` or `mixed`; None if unknown."""
    dtype: str = "float32"
    """Precision of the saved weights."""
    probes: dict[str, Any] = field(default_factory=dict)
    """The probe conversations with their token ids and rewards; see `probes.probe_record`."""
    loss: dict[str, Any] = field(default_factory=dict)
    """Name and settings of the training loss, including the tie parameter."""
    reward_statistics: dict[str, float] = field(default_factory=dict)
    """`mean`, `std` and number of rewards on the evaluation split, to normalise rewards in RL."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """`temperature`: P(a preferred to b) is the logistic function of their reward difference divided by it."""
    length_correction: dict[str, Any] = field(default_factory=dict)
    """A correction for length bias (`LengthCorrection.to_dict`). The weights do not include it; it is only applied on
    request."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last complete evaluation, with the names of `preference_metrics`."""
    baselines: list[dict[str, Any]] = field(default_factory=list)
    """Trivial baselines on the same split: `name`, `accuracy`, `ci_low`, `ci_high`, `num_pairs`."""
    training: dict[str, Any] = field(default_factory=dict)
    """`steps`, `data` (summaries by split), `settings` of the run, and the `command` of the run."""
    training_texts: dict[str, Any] = field(default_factory=dict)
    """Lengths and hashed common words of the training texts (`training_texts.summarize_texts`), to recognise texts from
    another domain. Empty if unknown."""
    base_model: str | None = None
    quantization: dict[str, Any] = field(default_factory=dict)
    """Quantisation of the backbone in training, in the format of transformers."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Origin of weights that were not trained by hf_reward: `imported_from`, `averaged`, `merged`, ..."""
    card: dict[str, Any] = field(default_factory=dict)
    """The user's values for the model card: `model_name`, `license`, `language`, `dataset`, `tags`."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def rule(self) -> FormatRule:
        """Text format, without settings of later versions."""
        known = {name: value for name, value in self.format.items() if name in FormatRule.__dataclass_fields__}
        return FormatRule(**{"max_length": None, **known})

    def save(self, folder: str | Path) -> Path:
        """Write the record into a model folder.

        Args:
            folder: The folder.

        Returns:
            The file.
        """
        path = Path(folder) / FILE_NAME
        path.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "CheckpointRecord | None":
        """Read the record of a model folder, None if it has none.

        Args:
            folder: The folder.

        Returns:
            The record, without fields of later versions.

        Raises:
            ValueError: If the file is not a record.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            return None
        known = {each.name for each in fields(cls)}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            record = cls(**{name: value for name, value in content.items() if name in known})
            _check_kinds(record)
            _check_probes(record.probes)
            return record
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a valid record of hf_reward ({error!r}). Copy the model again from its source, or "
                "remove the file, which is not required to load the weights."
            ) from error

    @classmethod
    def find(cls, name_or_path: str | Path, **hub: Any) -> "CheckpointRecord | None":
        """Read the record of a folder or a Hub model; None if there is none or the Hub cannot be reached.

        Args:
            name_or_path: Folder or Hub id.
            **hub: `revision`, `token`, `cache_dir`, `subfolder`.

        Returns:
            The record.

        Raises:
            FileNotFoundError: If the name is not a Hub id, and there is no such folder.
        """
        if Path(name_or_path).is_dir():
            return cls.load(name_or_path)
        require_folder_or_hub_id(name_or_path)
        path = optional_file(name_or_path, FILE_NAME, **hub)
        return None if path is None else cls.load(path.parent)


def _check_kinds(record: CheckpointRecord) -> None:
    """Raise errors that an access to the fields would raise later."""
    for each in fields(record):
        kind: Any = get_origin(each.type)
        kind = kind if kind in (dict, list) else each.type
        if not isinstance(getattr(record, each.name), kind):
            raise TypeError(f"`{each.name}` is {getattr(record, each.name)!r}")
    _ = record.rule


def _check_probes(probes: dict[str, Any]) -> None:
    """Raise errors that an access to the probes would raise later."""
    names = [probe["name"] for probe in probes.get("conversations", [])]
    for probe in probes.get("conversations", []):
        [int(word) for word in probe["input_ids"].split()]
    if names and not probes["rewards"]:
        raise ValueError("probes without rewards")
    if "images" in probes:
        _ = probes["images"]["processor"], [probe["messages"] for probe in probes["images"]["conversations"]]
        _check_probes({name: value for name, value in probes["images"].items() if name != "images"})
    for dtype, rewards in probes.get("rewards", {}).items():
        if len(rewards) != len(names) or not all(isinstance(reward, float | int | None) for reward in rewards):
            raise ValueError(f"{len(names)} probes have {len(rewards)} rewards in {dtype}, or some are not numbers")


def describe(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rule: FormatRule | None = None,
    *,
    half: torch.dtype | None = None,
    probes: dict[str, Any] | None = None,
) -> CheckpointRecord:
    """Create the record of a model and score its probes.

    Args:
        model: A reward model, with or without PEFT's wrapper; not sharded, unless `probes` are given.
        tokenizer: Its prepared tokenizer.
        rule: Text format.
        half: Also score the probes under autocast in this precision.
        probes: Scored probes, if available.

    Returns:
        The record, without training and evaluation.
    """
    rule = rule or FormatRule(max_length=None)  # the limit of other models is unknown
    config = unwrap_model(model).config
    if probes is None:
        probes = probe_record(model, tokenizer, rule=rule, half=half)
    quantization: Any = getattr(config, "quantization_config", None) or {}
    return CheckpointRecord(
        format=rule.to_dict(),
        reads="last_token" if reads_positions(model) else "pooled",
        reward_heads=number_of_heads(model),
        pad_token_id=config.get_text_config().pad_token_id,
        template_hash=template_hash(tokenizer),
        tokenizer_hash=tokenizer_hash(tokenizer),
        dtype=str(weight_dtype(model)).removeprefix("torch."),
        probes=probes,
        base_model=getattr(config, "_name_or_path", None) or None,
        quantization=quantization if isinstance(quantization, dict) else quantization.to_dict(),
        versions=library_versions(),
    )


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the SHA-256 of the chat template, None without one."""
    template = tokenizer.chat_template
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of vocabulary, special tokens and merges, which determine the token ids."""
    content = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        settings = json.loads(backend.to_str())
        # Padding and truncation are state of the last call, not settings of the tokenizer.
        content["backend"] = {name: value for name, value in settings.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that affect rewards."""
    return {name: version(name) for name in ("hf_reward", "torch", "transformers", "tokenizers", "peft")}


def drift(record: CheckpointRecord, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the differences between a tokenizer and the one that a model was saved with.

    Args:
        record: Record of the model.
        tokenizer: The tokenizer to check.

    Returns:
        One clause for each difference that changes token ids or the position of the reward.
    """
    found = []
    if tokenizer_hash(tokenizer) != record.tokenizer_hash:
        found.append("the tokenizer's vocabulary, special tokens or merges have changed")
    if template_hash(tokenizer) != record.template_hash:
        found.append("the chat template has changed" if tokenizer.chat_template else "the chat template is missing")
    if record.pad_token_id is not None and tokenizer.pad_token_id != record.pad_token_id:
        found.append(f"the tokenizer's pad token has id {tokenizer.pad_token_id} instead of {record.pad_token_id}")
    if tokenizer.padding_side != "right":
        found.append(f"the tokenizer pads on the {tokenizer.padding_side}")
    return found


def adapter_base(folder: str | Path, base_model: str | None = None, **hub: Any) -> str:
    """Return the location of the base model of a saved adapter.

    Args:
        folder: Folder of the adapter.
        base_model: Current location of the base, if it differs from `adapter_config.json`.
        **hub: `token`, `cache_dir`, and a `revision` of the base that replaces the one in `adapter_config.json`.

    Returns:
        Folder or Hub id.

    Raises:
        ValueError: If the adapter names no base, or the base cannot be found.
    """
    base = base_model
    if base is None:
        base = adapter_settings(folder).get("base_model_name_or_path")
    remedy = "Set it with `--base-model FOLDER_OR_ID` (`base_model_name_or_path=...` in Python)."
    if not base:
        raise ValueError(f"An adapter requires its base model, but {folder} names none. {remedy}")
    if Path(base).is_dir():
        return base
    hub = {**stated_revision(folder, base_model), **hub}
    try:
        found = cached_file(base, "config.json", **hub, **_MAY_LACK) or cached_file(base, "adapter_config.json", **hub)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The base model {base!r} of the adapter {folder} was found neither as a folder nor on the Hub. {remedy}"
        ) from error
    assert found is not None
    return base


def store_length_correction(folder: str | Path, correction: LengthCorrection | None) -> Path:
    """Store a length correction with a model; `RewardScorer(..., length_correction=True)` applies it.

    Args:
        folder: A folder that was saved by hf_reward.
        correction: The correction; None removes a stored one.

    Returns:
        The updated file.

    Raises:
        FileNotFoundError: If the folder has no record.
        ValueError: If its record cannot be read.
    """
    return _rewrite(folder, "length_correction", {} if correction is None else correction.to_dict())


def store_temperature(folder: str | Path, temperature: float, **notes: Any) -> Path:
    """Store the temperature that divides reward differences to give log-odds; `RewardScorer.compare` applies it.

    Args:
        folder: A folder that was saved by hf_reward.
        temperature: The divisor, above 0; see `calibration.fit_slope`.
        **notes: Further JSON values to store: the data, the number of pairs, an interval, ...

    Returns:
        The updated file.

    Raises:
        FileNotFoundError: If the folder has no record.
        ValueError: If the temperature is not a number above 0, or the record cannot be read.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"`temperature` must be a finite number above 0, but is {temperature}. A model with a slope of 0 or less "
            "has no temperature."
        )
    return _rewrite(folder, "calibration", {"temperature": float(temperature), **notes})


def _rewrite(folder: str | Path, name: str, value: Any) -> Path:
    """Replace one field atomically."""
    path = Path(folder) / FILE_NAME
    if CheckpointRecord.load(folder) is None:
        raise FileNotFoundError(
            f"The value is stored in {FILE_NAME}, but {folder} has none. Use a folder that was saved by hf_reward or "
            "converted with `hf-reward import`."
        )
    content = json.loads(path.read_text(encoding="utf-8")) | {name: value}
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return path


def stated_revision(folder: str | Path, base_model: str | None = None) -> dict[str, str]:
    """Return the revision of the base in an adapter's configuration, as an option for loading.

    Args:
        folder: Folder of the adapter.
        base_model: Another base, to which the revision does not apply.

    Returns:
        `revision`, or nothing if none is stated.
    """
    stated = None if base_model else adapter_settings(folder).get("revision")
    return {"revision": str(stated)} if stated else {}
