"""Saved folder -> staged folder with the files to publish (an explicit list), without local paths."""

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_reward.data.path_safety import require_inside
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.custom_code import has_custom_code, require_trust
from hf_reward.modeling.head_ensemble import HEADS_FILE
from hf_reward.modeling.probes import differing
from hf_reward.modeling.transformers_4 import add_transformers_4_fields
from hf_reward.modeling.weight_safety import require_safe_weights
from hf_reward.publishing.card.evaluation_entries import ENTRIES, OWN_ENTRIES
from hf_reward.publishing.card.render import is_generated, write_model_card
from hf_reward.publishing.card.text import hub_id, without_paths
from hf_reward.publishing.compatibility import compatibility_of_folder
from hf_reward.publishing.export import ADAPTER_FOLDER, MERGE_TOLERANCE, ExportRule, as_plain, write_verified
from hf_reward.publishing.saved_model import load_with_heads
from hf_reward.publishing.verify import VerificationError, verify_checkpoint

_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
PUBLISHED = (
    *("config.json", "generation_config.json", "reward_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", HEADS_FILE),
    *("README.md", ENTRIES, "audit_summary.json", "audit_effects.png", "benchmark_results.json"),
    *_TOKENIZER,
)
"""Patterns of the files that are published; other files never are."""
PUBLISHED_ADAPTER = (
    *("adapter_config.json", "adapter_model.safetensors", HEADS_FILE, "reward_config.json", "README.md"),
    *_TOKENIZER,
)
TRAINING_STATE = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors", HEADS_FILE, "reward_config.json", *_TOKENIZER),
)
"""Files of a checkpoint for resuming; published only on request (`training_state`)."""
REPLACED = (
    *(OWN_ENTRIES if pattern == ENTRIES else pattern for pattern in PUBLISHED),
    *(f"{ADAPTER_FOLDER}/{pattern}" for pattern in PUBLISHED_ADAPTER),
    *("adapter_config.json", "adapter_model.*", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
"""Files that are removed from the repository if the new version lacks them: earlier files of hf_reward, and files
that `from_pretrained` would load instead of the model or in addition to it."""


@dataclass(frozen=True, kw_only=True)
class PushRule:
    """Options of a push."""

    branch: str = "main"
    private: bool | None = None
    """Whether only the owners see the repository; None does not change an existing repository."""
    gated: str | bool | None = None
    """'auto' or 'manual': users must request access. False removes the gate; None does not change it."""
    create_pr: bool = False
    """Open a pull request instead of updating the branch."""
    adapter: bool = False
    """Also publish the adapter, in `adapter/`."""
    replace: bool = False
    """Replace a repository that contains another model."""
    base_model: str | None = None
    """Hub id of the base model, if the files name a local folder."""
    allow_pickle: bool = False
    """Read pickled weights of an adapter or its base (tensors only). Published weights are always safetensors."""
    training_state: str | None = None
    """Publish optimizer and random state in this folder of the repository."""
    message: str = "Reward model"
    trust_remote_code: bool = False
    """Whether code from the model folder may run; it is also published."""

    def __post_init__(self) -> None:
        if self.gated not in (None, False, "auto", "manual"):
            raise ValueError(f"`gated` must be 'auto', 'manual', False or None, but is {self.gated!r}.")
        if self.training_state is not None and not re.fullmatch(r"[\w-][\w.-]*", self.training_state):
            raise ValueError(f"`training_state` must be the name of one folder, but is {self.training_state!r}.")


def assemble(folder: Path, assembled: Path, repo_id: str, rule: PushRule) -> None:
    """Stage the files to publish in a new folder, without local paths.

    Args:
        folder: A saved model or adapter.
        assembled: The new folder.
        repo_id: Repository, for the card.
        rule: Options of the push.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder is not publishable.
        VerificationError: If the adapter beside the model is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r} (current directory: {Path.cwd()}).")
    adapter = folder if (folder / "adapter_config.json").is_file() else folder / ADAPTER_FOLDER
    if adapter == folder:
        options: dict[str, Any] = {"base_model": _base_to_load(folder, rule), "allow_pickle": rule.allow_pickle}
        saved = load_with_heads(folder, trust_remote_code=rule.trust_remote_code, **options)
        merged = ExportRule(allow_unserved=True, trust_remote_code=rule.trust_remote_code)
        write_verified(as_plain(saved), assembled, merged, verify=False)  # the push verifies the staged folder
        _take(folder, assembled, ("README.md", "audit_summary.json", "audit_effects.png", "benchmark_results.json"))
    elif (folder / "config.json").is_file():
        require_trust(folder, rule.trust_remote_code)
        require_safe_weights(folder)
        _take(folder, assembled, (*PUBLISHED, "*.py") if has_custom_code(folder) else PUBLISHED)
    else:
        raise ValueError(f"{folder} is not a saved model: it has neither config.json nor adapter_config.json.")
    if rule.adapter:
        if not adapter.is_dir():
            raise ValueError(f"`adapter` requires the folder {adapter}, which does not exist. Leave the option out.")
        if adapter != folder:  # the merge above already verified it
            _require_same_rewards(adapter, folder, rule)
        _take(adapter, assembled / ADAPTER_FOLDER, PUBLISHED_ADAPTER)
        _name_base(assembled / ADAPTER_FOLDER, rule)
    if rule.training_state is not None:
        _take(folder, assembled / rule.training_state, TRAINING_STATE)
        names = ("adapter_config.json", "reward_config.json", "trainer_state.json")
        _hide_paths(assembled / rule.training_state, names)
    _hide_paths(assembled, ("audit_summary.json", "benchmark_results.json"))
    add_transformers_4_fields(assembled)  # earlier versions did not write them
    _finish_card(folder, assembled, repo_id, rule)


def _take(folder: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Link the matching files (or copy them, across disks)."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    require_inside(folder, found)  # a link in an untrusted folder could publish any file
    for path in found:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            try:
                os.link(path.resolve(), place)
                continue
            except OSError:
                pass
        shutil.copyfile(path, place)  # small files may be rewritten, which must not change the originals


def _base_to_load(adapter: Path, rule: PushRule) -> str | None:
    """Return the location of the base of an adapter, if it differs from the adapter's configuration."""
    named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    return None if named and (Path(named).is_dir() or hub_id(named)) else rule.base_model


def _require_same_rewards(adapter: Path, folder: Path, rule: PushRule) -> None:
    """Refuse an adapter that is damaged or does not belong to the merged model."""
    options: dict[str, Any] = {"allow_pickle": rule.allow_pickle, "trust_remote_code": rule.trust_remote_code}
    found = verify_checkpoint(adapter, base_model=_base_to_load(adapter, rule), **options)
    if not found.equal:
        message = f"Nothing was pushed, because the adapter has changed since it was saved. {found}"
        raise VerificationError(message, found)
    records = [CheckpointRecord.load(each) for each in (adapter, folder)]
    one, other = (each.probes.get("rewards", {}).get("float32", []) if each else [] for each in records)
    if len(one) != len(other) or differing(one, other, MERGE_TOLERANCE):
        raise ValueError(
            f"The adapter {adapter} and the merged model {folder} give different rewards, so they are from different "
            "runs. Merge the adapter again with `hf-reward export`, or leave `adapter` out."
        )


def _hide_paths(folder: Path, names: tuple[str, ...]) -> None:
    """Shorten local paths in JSON files."""
    for name in names:
        path = folder / name
        if path.is_file():
            content = _shortened(json.loads(path.read_text(encoding="utf-8")))
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _name_base(adapter: Path, rule: PushRule) -> None:
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    base = rule.base_model or content.get("base_model_name_or_path")
    if hub_id(base) is None:
        raise ValueError(
            f"A published adapter requires the Hub id of its base model, but the base is the local folder {base!r}. "
            "Pass the id with `--base-model ORG/NAME`, or push only the merged model."
        )
    path.write_text(json.dumps({**content, "base_model_name_or_path": base}, indent=2, sort_keys=True) + "\n", "utf-8")


def _finish_card(folder: Path, assembled: Path, repo_id: str, rule: PushRule) -> None:
    """Set the repository in record and card. An edited card is not changed."""
    record = CheckpointRecord.load(assembled)
    if record is None:
        raise ValueError(
            f"A push requires reward_config.json to verify the model, but {folder} has none. Run `hf-reward export "
            f"{folder} OUT` first."
        )
    card_file = assembled / "README.md"
    edited = card_file.is_file() and not is_generated(card_file)
    record = _without_local_paths(record, repo_id, rule)
    record.save(assembled)
    adapter_record = CheckpointRecord.load(assembled / ADAPTER_FOLDER)
    if adapter_record is not None:
        _without_local_paths(adapter_record, repo_id, rule).save(assembled / ADAPTER_FOLDER)
    if not edited:
        write_model_card(assembled, record, compatibility=compatibility_of_folder(assembled), model_id=repo_id)


def _without_local_paths(record: CheckpointRecord, repo_id: str, rule: PushRule) -> CheckpointRecord:
    """Return the record without local paths."""
    card = {**record.card, **({"base_model": rule.base_model} if rule.base_model else {})}
    names = ("training", "origin", "calibration", "length_correction", "evaluation", "baselines")
    return replace(
        record,
        **{name: _shortened(getattr(record, name)) for name in names},
        base_model=hub_id(rule.base_model or record.base_model),
        card=_shortened({"model_name": repo_id.split("/")[-1], **card}),
    )


def _shortened(value: Any) -> Any:
    """Return JSON values with absolute paths shortened to `LOCAL/name`."""
    if isinstance(value, dict):
        return {_shortened(name): _shortened(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    return without_paths(value) if isinstance(value, str) else value
