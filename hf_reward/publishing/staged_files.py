"""Saved folder -> folder of what may be published: an explicit list of files, without the paths of this machine."""

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_reward.data.path_safety import require_inside
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.custom_code import brings_code, require_trust
from hf_reward.modeling.head_ensemble import HEADS_FILE
from hf_reward.modeling.probes import differing
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
)
PUBLISHED = (
    *("config.json", "generation_config.json", "reward_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", HEADS_FILE),
    *("README.md", ENTRIES, "audit_summary.json", "audit_effects.png", "benchmark_results.json"),
    *_TOKENIZER,
)
"""What may be published, as patterns of paths in the folder; nothing else ever is."""
PUBLISHED_ADAPTER = (
    *("adapter_config.json", "adapter_model.safetensors", HEADS_FILE, "reward_config.json", "README.md"),
    *_TOKENIZER,
)
TRAINING_STATE = (
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "trainer_state.json", "config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors", HEADS_FILE, "reward_config.json", *_TOKENIZER),
)
"""A checkpoint that training can go on from; published only where asked for by name."""
REPLACED = (
    *(OWN_ENTRIES if pattern == ENTRIES else pattern for pattern in PUBLISHED),
    *(f"{ADAPTER_FOLDER}/{pattern}" for pattern in PUBLISHED_ADAPTER),
    *("adapter_config.json", "adapter_model.*", "pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
"""What is removed from the repository if this version lacks it: earlier files of ours, and whatever else
`from_pretrained` would load in place of the model or on top of it."""


@dataclass(frozen=True, kw_only=True)
class PushRule:
    """How a model is published."""

    branch: str = "main"
    private: bool | None = None
    """Whether only its owners see it; None leaves a repository as it is."""
    gated: str | bool | None = None
    """'auto' or 'manual': readers have to ask for access; False ends that; None leaves it as it is."""
    create_pr: bool = False
    """Open a pull request instead of moving the branch."""
    adapter: bool = False
    """Publish the adapter too, under `adapter/`."""
    replace: bool = False
    """Allow a repository that holds something else than a reward model of ours."""
    base_model: str | None = None
    """Hub id of the model that this one was trained from, where its files name a local folder."""
    allow_pickle: bool = False
    """Read weights of an adapter or its base that are pickles, tensors only; what is published is safetensors."""
    training_state: str | None = None
    """Publish optimizer and random state under this folder of the repository."""
    message: str = "Reward model"
    trust_remote_code: bool = False
    """Whether code that the model's folder brings may run; it is published too."""

    def __post_init__(self) -> None:
        if self.gated not in (None, False, "auto", "manual"):
            raise ValueError(f"`gated` must be 'auto', 'manual', False or None, but is {self.gated!r}.")
        if self.training_state is not None and not re.fullmatch(r"[\w-][\w.-]*", self.training_state):
            raise ValueError(f"`training_state` must be the name of one folder, but is {self.training_state!r}.")


def assemble(folder: Path, assembled: Path, repo_id: str, rule: PushRule) -> None:
    """Gather what may be published in a folder of its own, with paths of this machine taken out.

    Args:
        folder: A saved model or adapter.
        assembled: The new folder.
        repo_id: Where it will be published, for the card.
        rule: What is asked for.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it cannot be published as it is.
        VerificationError: If the adapter beside the model is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r} (looked in {Path.cwd()}).")
    adapter = folder if (folder / "adapter_config.json").is_file() else folder / ADAPTER_FOLDER
    if adapter == folder:
        options: dict[str, Any] = {"base_model": _base_to_load(folder, rule), "allow_pickle": rule.allow_pickle}
        saved = load_with_heads(folder, trust_remote_code=rule.trust_remote_code, **options)
        merged = ExportRule(allow_unserved=True, trust_remote_code=rule.trust_remote_code)
        write_verified(as_plain(saved), assembled, merged, verify=False)  # a push verifies what is assembled here
        _take(folder, assembled, ("README.md", "audit_summary.json", "audit_effects.png", "benchmark_results.json"))
    elif (folder / "config.json").is_file():
        require_trust(folder, rule.trust_remote_code)
        require_safe_weights(folder)
        _take(folder, assembled, (*PUBLISHED, "*.py") if brings_code(folder) else PUBLISHED)
    else:
        raise ValueError(f"{folder} is no saved model: it has neither config.json nor adapter_config.json.")
    if rule.adapter:
        if not adapter.is_dir():
            raise ValueError(f"`adapter` is asked for, but there is no {adapter}. Leave it out, or train with LoRA.")
        if adapter != folder:  # one that was merged just now was verified on the way
            _require_same_rewards(adapter, folder, rule)
        _take(adapter, assembled / ADAPTER_FOLDER, PUBLISHED_ADAPTER)
        _name_base(assembled / ADAPTER_FOLDER, rule)
    if rule.training_state is not None:
        _take(folder, assembled / rule.training_state, TRAINING_STATE)
        names = ("adapter_config.json", "reward_config.json", "trainer_state.json")
        _hide_paths(assembled / rule.training_state, names)
    _hide_paths(assembled, ("audit_summary.json", "benchmark_results.json"))
    _finish_card(folder, assembled, repo_id, rule)


def _take(folder: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """Link (or copy, across disks) the files that match."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    require_inside(folder, found)  # a link in a folder from elsewhere would publish whatever file it points to
    for path in found:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            try:
                os.link(path.resolve(), place)
                continue
            except OSError:
                pass
        shutil.copyfile(path, place)  # small files may be rewritten here, which a link would carry back


def _base_to_load(adapter: Path, rule: PushRule) -> str | None:
    """Where to load an adapter's base from, if not from where the adapter says."""
    named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    return None if named and (Path(named).is_dir() or hub_id(named)) else rule.base_model


def _require_same_rewards(adapter: Path, folder: Path, rule: PushRule) -> None:
    """Stop where the adapter beside a merged model is damaged or another one."""
    options: dict[str, Any] = {"allow_pickle": rule.allow_pickle, "trust_remote_code": rule.trust_remote_code}
    found = verify_checkpoint(adapter, base_model=_base_to_load(adapter, rule), **options)
    if not found.equal:
        raise VerificationError(f"Nothing was pushed, because the adapter is not as it was saved. {found}", found)
    records = [CheckpointRecord.load(each) for each in (adapter, folder)]
    one, other = (each.probes.get("rewards", {}).get("float32", []) if each else [] for each in records)
    if len(one) != len(other) or differing(one, other, MERGE_TOLERANCE):
        raise ValueError(
            f"The adapter {adapter} gives other rewards than the merged model {folder}: they are from different "
            "trainings. Merge it again with `hf-reward export`, or leave `adapter` out."
        )


def _hide_paths(folder: Path, names: tuple[str, ...]) -> None:
    """Cut the paths of this machine in JSON files."""
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
            f"The adapter's base model is the local folder {base!r}, which nobody else has. Name its Hub id: "
            "`--base-model ORG/NAME`. The merged model can be pushed without."
        )
    path.write_text(json.dumps({**content, "base_model_name_or_path": base}, indent=2, sort_keys=True) + "\n", "utf-8")


def _finish_card(folder: Path, assembled: Path, repo_id: str, rule: PushRule) -> None:
    """Name the repository in record and card; a card that somebody edited stays as it is."""
    record = CheckpointRecord.load(assembled)
    if record is None:
        raise ValueError(
            f"{folder} has no reward_config.json, so nobody could verify what is pushed. Run `hf-reward export "
            f"{folder} OUT` first."
        )
    card_file = assembled / "README.md"
    edited = card_file.is_file() and not is_generated(card_file)
    record = _for_others(record, repo_id, rule)
    record.save(assembled)
    adapter_record = CheckpointRecord.load(assembled / ADAPTER_FOLDER)
    if adapter_record is not None:
        _for_others(adapter_record, repo_id, rule).save(assembled / ADAPTER_FOLDER)
    if not edited:
        write_model_card(assembled, record, compatibility=compatibility_of_folder(assembled), model_id=repo_id)


def _for_others(record: CheckpointRecord, repo_id: str, rule: PushRule) -> CheckpointRecord:
    """The record without the paths of this machine."""
    card = {**record.card, **({"base_model": rule.base_model} if rule.base_model else {})}
    names = ("training", "origin", "calibration", "length_correction", "evaluation", "baselines")
    return replace(
        record,
        **{name: _shortened(getattr(record, name)) for name in names},
        base_model=hub_id(rule.base_model or record.base_model),
        card=_shortened({"model_name": repo_id.split("/")[-1], **card}),
    )


def _shortened(value: Any) -> Any:
    """JSON values with every absolute path cut to its last part."""
    if isinstance(value, dict):
        return {_shortened(name): _shortened(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    return without_paths(value) if isinstance(value, str) else value
