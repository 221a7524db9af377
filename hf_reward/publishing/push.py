"""Saved folder or model in memory -> model on the Hub, verified and published in one atomic commit."""

import copy
import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.checkpoint_record import CheckpointRecord, describe
from hf_reward.modeling.custom_code import is_custom
from hf_reward.modeling.model_tokenizer import load_tokenizer
from hf_reward.modeling.probes import differing, weight_dtype
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.publishing.export import MERGE_TOLERANCE, ExportRule, save_adapter, write_verified
from hf_reward.publishing.repository import PushError, PushReport, explained, full_name, publish
from hf_reward.publishing.saved_model import SavedModel
from hf_reward.publishing.staged_files import PushRule, assemble
from hf_reward.publishing.verify import VerificationError, verify_checkpoint

__all__ = ["PushError", "PushReport", "PushRule", "explained", "push_model", "push_reward_model"]


def push_reward_model(
    folder: str | Path, repo_id: str, rule: PushRule | None = None, *, token: str | None = None
) -> PushReport:
    """Publish a saved reward model.

    Args:
        folder: A complete model, or an adapter (which is merged first).
        repo_id: `user/name` on the Hub. `name` alone is completed with the user of the token.
        rule: Options of the push.
        token: Write token; the default is the token that `hf auth login` stored. It is never written or logged.

    Returns:
        Report on the published files.

    Raises:
        VerificationError: If the folder, or its download from the Hub, does not give the recorded rewards.
        PushError: If the Hub refuses or fails; the published branch is unchanged.
        ValueError: If the folder is not publishable.
    """
    rule = rule or PushRule()
    folder = Path(folder)
    with explained(repo_id, "Nothing was changed."):
        api = HfApi(token=token)
        repo_id = full_name(api, repo_id)
    parent = folder.resolve().parent  # on the same disk, weights are linked, and there is space for the download
    with tempfile.TemporaryDirectory(prefix=".hf-reward-push-", dir=_if_writable(parent)) as place:
        assembled = Path(place) / "model"
        assemble(folder, assembled, repo_id, rule)
        found = verify_checkpoint(assembled, trust_remote_code=rule.trust_remote_code)
        if not found.equal:
            message = f"Nothing was pushed, because the folder has changed since it was saved. {found}"
            raise VerificationError(message, found)
        return publish(api, assembled, repo_id, rule, Path(place) / "downloaded")


def push_model(
    model: Any,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    **rule: Any,
) -> PushReport:
    """Publish a model in memory without changing it. An adapter is merged in a copy.

    Args:
        model: A reward model, with or without an adapter.
        repo_id: `user/name` on the Hub.
        tokenizer: Its tokenizer; the default is the tokenizer of the folder that the model was loaded from.
        token: Write token.
        revision: Transformers' name for `branch`.
        commit_message: Transformers' name for `message`.
        **rule: Fields of `PushRule`.

    Returns:
        Report on the published files.

    Raises:
        ValueError: If the tokenizer is required, or an option is unknown.
    """
    renamed = {"branch": revision, "message": commit_message}
    rule |= {name: value for name, value in renamed.items() if value is not None}
    unknown = sorted(set(rule) - {each.name for each in fields(PushRule)})
    if unknown:
        raise ValueError(f"`push_to_hub` has no option {', '.join(unknown)}. Its options are the fields of `PushRule`.")
    source = unwrap_model(model).config.name_or_path
    rule.setdefault("trust_remote_code", is_custom(type(unwrap_model(model).config)))  # its code is running here
    tokenizer = tokenizer or load_tokenizer(source or None, trust_remote_code=rule["trust_remote_code"])
    if tokenizer is None:
        raise ValueError(
            "`push_model` requires the tokenizer to verify rewards, but the model was not loaded from a folder that "
            "contains one. Pass `tokenizer`."
        )
    with tempfile.TemporaryDirectory(prefix="hf-reward-push-") as place:
        folder = Path(place) / repo_id.split("/")[-1]
        tokenizer = prepare_tokenizer(tokenizer)
        saved = _as_saved(model, tokenizer, source)
        if isinstance(model, PeftModel):
            save_adapter(replace(saved, record=saved.described()), folder)
        else:
            is_float32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
            plain = saved if is_float32 else saved.changed(copy.deepcopy(model))  # a cast changes the model
            dtype = str(weight_dtype(model)).removeprefix("torch.")
            written = ExportRule(dtype=dtype, allow_unserved=True, trust_remote_code=rule["trust_remote_code"])
            write_verified(plain, folder, written, verify=False)  # the push verifies it
        return push_reward_model(folder, repo_id, PushRule(**rule), token=token)


def _as_saved(model: Any, tokenizer: PreTrainedTokenizerBase, source: str | None) -> SavedModel:
    """Return the model with the record of its source folder, if its rewards have not changed since.

    Args:
        model: A reward model.
        tokenizer: Its tokenizer.
        source: Folder or Hub id that it was loaded from, if known.

    Returns:
        The model with its record. `described` adds the facts that depend on the current weights.
    """
    record = CheckpointRecord.find(source) if source else None
    if record is None:
        return SavedModel(model, tokenizer, describe(model, tokenizer, probes={}))
    result = SavedModel(model, tokenizer, record)
    before = record.probes.get("rewards", {}).get("float32")
    now = result.rewards if weight_dtype(model) == torch.float32 else None
    if before is None or now is None or len(before) != len(now) or differing(before, now, MERGE_TOLERANCE):
        # The model was trained further, so the recorded evaluation does not apply to it.
        result.record = replace(describe(model, tokenizer, record.rule, probes={}), card=record.card)
    return result


def _if_writable(folder: Path) -> Path | None:
    return folder if os.access(folder, os.W_OK) else None
