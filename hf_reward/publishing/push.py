"""Verified folder or live model -> model on the Hub, in one step that happens wholly or not at all."""

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
        folder: A merged or full model, or an adapter (which is merged first).
        repo_id: `user/name` on the Hub; `name` alone is the token's own user's.
        rule: How to publish it.
        token: Write token; by default the one that `hf auth login` stored. It is never written or logged.

    Returns:
        What was published.

    Raises:
        VerificationError: If the folder, or what came back from the Hub, does not give the recorded rewards.
        PushError: If the Hub refuses or fails; the published branch is as it was.
        ValueError: If the folder cannot be published as it is.
    """
    rule = rule or PushRule()
    folder = Path(folder)
    with explained(repo_id, "Nothing was changed."):
        api = HfApi(token=token)
        repo_id = full_name(api, repo_id)
    beside = folder.resolve().parent  # on the folder's own disk weights are linked, and there is room to download them
    with tempfile.TemporaryDirectory(prefix=".hf-reward-push-", dir=_if_writable(beside)) as place:
        assembled = Path(place) / "model"
        assemble(folder, assembled, repo_id, rule)
        found = verify_checkpoint(assembled, trust_remote_code=rule.trust_remote_code)
        if not found.equal:
            raise VerificationError(f"Nothing was pushed, because the folder is not as it was saved. {found}", found)
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
    """Publish a live model, which stays as it is; an adapter is merged in a copy.

    Args:
        model: A reward model, perhaps with an adapter.
        repo_id: `user/name` on the Hub.
        tokenizer: Its tokenizer; by default the one of the folder that the model came from.
        token: Write token.
        revision: Transformers' name for `branch`.
        commit_message: Transformers' name for `message`.
        **rule: Fields of `PushRule`.

    Returns:
        What was published.

    Raises:
        ValueError: If the tokenizer has to be given, or an option is not known.
    """
    renamed = {"branch": revision, "message": commit_message}
    rule |= {name: value for name, value in renamed.items() if value is not None}
    unknown = sorted(set(rule) - {each.name for each in fields(PushRule)})
    if unknown:
        raise ValueError(f"`push_to_hub` has no option {', '.join(unknown)}. It takes the fields of `PushRule`.")
    source = unwrap_model(model).config.name_or_path
    rule.setdefault("trust_remote_code", is_custom(type(unwrap_model(model).config)))  # its code is running here
    tokenizer = tokenizer or load_tokenizer(source or None, trust_remote_code=rule["trust_remote_code"])
    if tokenizer is None:
        raise ValueError(
            "Pass `tokenizer`: rewards cannot be verified without it, and the model does not name its own."
        )
    with tempfile.TemporaryDirectory(prefix="hf-reward-push-") as place:
        folder = Path(place) / repo_id.split("/")[-1]
        tokenizer = prepare_tokenizer(tokenizer)
        saved = _as_saved(model, tokenizer, source)
        if isinstance(model, PeftModel):
            save_adapter(replace(saved, record=saved.described()), folder)
        else:
            is_float32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
            plain = saved if is_float32 else saved.changed(copy.deepcopy(model))  # a cast would change the caller's
            dtype = str(weight_dtype(model)).removeprefix("torch.")
            written = ExportRule(dtype=dtype, allow_unserved=True, trust_remote_code=rule["trust_remote_code"])
            write_verified(plain, folder, written, verify=False)  # the push verifies it
        return push_reward_model(folder, repo_id, PushRule(**rule), token=token)


def _as_saved(model: Any, tokenizer: PreTrainedTokenizerBase, source: str | None) -> SavedModel:
    """With what the folder says that the model came from, as far as it still holds: all of it if rewards are the same.

    Args:
        model: A reward model.
        tokenizer: Its tokenizer.
        source: Where it came from, if that is known.

    Returns:
        The model with its record; `described` reads off it what is not known yet.
    """
    record = CheckpointRecord.find(source) if source else None
    if record is None:
        return SavedModel(model, tokenizer, describe(model, tokenizer, probes={}))
    result = SavedModel(model, tokenizer, record)
    before = record.probes.get("rewards", {}).get("float32")
    now = result.rewards if weight_dtype(model) == torch.float32 else None
    if before is None or now is None or len(before) != len(now) or differing(before, now, MERGE_TOLERANCE):
        # It was trained further: its evaluation was another model's.
        result.record = replace(describe(model, tokenizer, record.rule, probes={}), card=record.card)
    return result


def _if_writable(folder: Path) -> Path | None:
    return folder if os.access(folder, os.W_OK) else None
