"""Verified folder -> model on the Hub, in one step that happens wholly or not at all.

Files go to a staging branch, are downloaded back and scored again; only then does one commit move the branch that
people load. A push that fails at any point leaves that branch as it was; running it again sends no weights twice.
"""

import copy
import filecmp
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token, snapshot_download
from huggingface_hub.constants import HF_TOKEN_PATH
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - httpx or httpx2, whichever the client has
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from yaml import YAMLError

from hf_reward.data.path_safety import warn_if_others_can_read
from hf_reward.modeling.auto_model import load_tokenizer
from hf_reward.modeling.checkpoint_record import CheckpointRecord, describe
from hf_reward.modeling.custom_code import is_custom
from hf_reward.modeling.probes import differing
from hf_reward.modeling.reward_head import bare_model
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.publishing.card.text import without_tokens
from hf_reward.publishing.export import (
    MERGE_TOLERANCE,
    ExportRule,
    save_adapter,
    write_verified,
)
from hf_reward.publishing.staged_files import REPLACED, TRAINING_STATE, PushRule, assemble
from hf_reward.publishing.verify import VerificationError, verify_checkpoint

logger = logging.getLogger(__name__)

NETWORK_ERRORS: tuple[type[Exception], ...] = (HTTPError, OSError, json.JSONDecodeError)
"""What the client raises: errors of its HTTP library (httpx or httpx2) and of the system, answers cut short."""


class PushError(RuntimeError):
    """A push that did not happen: says why, and that the published branch is as it was."""


@dataclass(kw_only=True)
class PushReport:
    """What was published."""

    repo_id: str
    commit: str
    url: str
    files: list[str] = field(default_factory=list)
    pull_request: str | None = None
    notes: list[str] = field(default_factory=list)


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
        repo_id = _full_name(api, repo_id)
    beside = folder.resolve().parent  # on the folder's own disk weights are linked, and there is room to download them
    with tempfile.TemporaryDirectory(prefix=".hf-reward-push-", dir=_if_writable(beside)) as place:
        assembled = Path(place) / "model"
        assemble(folder, assembled, repo_id, rule)
        found = verify_checkpoint(assembled, trust_remote_code=rule.trust_remote_code)
        if not found.equal:
            raise VerificationError(f"Nothing was pushed, because the folder is not as it was saved. {found}", found)
        return _publish(api, assembled, repo_id, rule, Path(place) / "downloaded")


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
    source = bare_model(model).config.name_or_path
    rule.setdefault("trust_remote_code", is_custom(type(bare_model(model).config)))  # its code is running here
    tokenizer = tokenizer or load_tokenizer(source or None, trust_remote_code=rule["trust_remote_code"])
    if tokenizer is None:
        raise ValueError(
            "Pass `tokenizer`: rewards cannot be verified without it, and the model does not name its own."
        )
    with tempfile.TemporaryDirectory(prefix="hf-reward-push-") as place:
        folder = Path(place) / repo_id.split("/")[-1]
        tokenizer = prepare_tokenizer(tokenizer)
        record = _record_of(model, tokenizer, source)
        if isinstance(model, PeftModel):
            save_adapter(model, tokenizer, folder, record)
        else:
            is_float32 = all(parameter.dtype == torch.float32 for parameter in model.parameters())
            plain = model if is_float32 else copy.deepcopy(model)  # a cast would change the caller's model
            written = ExportRule(dtype=record.dtype, allow_unserved=True, trust_remote_code=rule["trust_remote_code"])
            write_verified(plain, tokenizer, folder, record, written)
        return push_reward_model(folder, repo_id, PushRule(**rule), token=token)


def _record_of(model: Any, tokenizer: PreTrainedTokenizerBase, source: str | None) -> CheckpointRecord:
    """What the folder says that the model came from, as far as it still holds: all of it if rewards are the same."""
    saved = CheckpointRecord.find(source) if source else None
    if saved is None:
        return describe(model, tokenizer)
    current = describe(model, tokenizer, FormatRule(**saved.format))
    one, other = (each.probes.get("rewards", {}).get("float32") for each in (saved, current))
    if one is None or other is None or len(one) != len(other) or differing(one, other, MERGE_TOLERANCE):
        return replace(current, card=saved.card)  # trained further: its evaluation was another model's
    facts = (
        *("dtype", "reward_heads", "probes", "quantization", "tokenizer_hash", "template_hash", "pad_token_id"),
        "versions",
    )
    return replace(saved, **{name: getattr(current, name) for name in facts})


def _if_writable(folder: Path) -> Path | None:
    return folder if os.access(folder, os.W_OK) else None


def _full_name(api: HfApi, repo_id: str) -> str:
    """The id with its owner; who has no token, or gives no id, is told before anything is done."""
    validate_repo_id(repo_id)
    if api.token is None and get_token() is None:
        raise LocalTokenNotFoundError("no token")
    if api.token is None:
        warn_if_others_can_read(HF_TOKEN_PATH)
    return repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"


@dataclass(frozen=True, kw_only=True)
class _Remote:
    """What the repository holds before the push."""

    sha: str
    files: list[str]
    private: bool
    gated: str | bool
    has_branch: bool
    branches: list[str]


def _publish(api: HfApi, assembled: Path, repo_id: str, rule: PushRule, downloaded: Path) -> PushReport:
    with explained(repo_id, f"The branch {rule.branch!r} was not changed."):
        _validate_card(assembled / "README.md")
        url = api.create_repo(repo_id, private=rule.private, exist_ok=True)
        remote = _look(api, repo_id, rule)
        if rule.private and not remote.private:
            api.update_repo_settings(repo_id, private=True)  # before anything new can be seen
        if rule.gated and remote.gated != rule.gated:
            api.update_repo_settings(repo_id, gated=rule.gated)  # type: ignore[arg-type]
        files = {
            path.relative_to(assembled).as_posix(): path for path in sorted(assembled.rglob("*")) if path.is_file()
        }
        report = PushReport(repo_id=repo_id, commit=remote.sha, url=str(url), files=list(files))
        if rule.create_pr:
            return _open_pull_request(api, files, remote, rule, report, downloaded)
        with _staging(api, files, remote, rule, report) as staging:
            staged = api.create_commit(
                repo_id, operations=_operations(files, remote), commit_message=rule.message, revision=staging
            ).oid
            _check_download(repo_id, staged, files, downloaded, api.token, rule)
            report.commit = _move(api, files, remote, rule, repo_id, staged)
    with explained(repo_id, f"The new version is on the branch {rule.branch!r}, but not all settings are made."):
        if rule.private is False and remote.private:
            api.update_repo_settings(repo_id, private=False)
        if rule.gated is False and remote.gated:
            api.update_repo_settings(repo_id, gated=False)
    return report


def _look(api: HfApi, repo_id: str, rule: PushRule) -> _Remote:
    branches = [each.name for each in api.list_repo_refs(repo_id).branches]
    has_branch = rule.branch in branches
    info = api.model_info(repo_id, revision=rule.branch if has_branch or rule.create_pr else "main")
    files = [each.rfilename for each in info.siblings or []]
    if has_branch:
        _require_ours(repo_id, files, rule)
    return _Remote(
        sha=str(info.sha),
        files=files,
        private=bool(info.private),
        gated=info.gated or False,
        has_branch=has_branch,
        branches=branches,
    )


@contextmanager
def _staging(api: HfApi, files: dict[str, Path], remote: _Remote, rule: PushRule, report: PushReport) -> Iterator[str]:
    """A fresh branch for this version, removed at the end; a killed push of the same files left one of that name."""
    staging = f"hf-reward-staging-{rule.branch}-{_digest(files)[:12]}"
    if staging in remote.branches:
        api.delete_branch(report.repo_id, branch=staging)
    try:
        api.create_branch(report.repo_id, branch=staging, revision=remote.sha, exist_ok=True)
        yield staging
    finally:
        try:
            api.delete_branch(report.repo_id, branch=staging)
        except NETWORK_ERRORS as error:
            report.notes.append(f"The branch {staging} could not be deleted ({_reason(error)}); the next push does it.")


def _move(api: HfApi, files: dict[str, Path], remote: _Remote, rule: PushRule, repo_id: str, staged: str) -> str:
    """Let the branch be what was staged, in one step."""
    if staged == remote.sha and remote.has_branch:
        return staged
    try:
        if not remote.has_branch:
            api.create_branch(repo_id, branch=rule.branch, revision=staged)
            return staged
        operations, start = _operations(files, remote), remote.sha
        return api.create_commit(
            repo_id, operations=operations, commit_message=rule.message, revision=rule.branch, parent_commit=start
        ).oid
    except NETWORK_ERRORS as error:
        head = _head_if_moved(api, repo_id, rule, staged, error)
        if head is None:
            raise
        return head


def _head_if_moved(api: HfApi, repo_id: str, rule: PushRule, staged: str, error: Exception) -> str | None:
    """The branch's commit if it holds what was staged, although the answer to that was an error or got lost."""
    try:
        there, wanted = (
            api.model_info(repo_id, revision=revision, files_metadata=True) for revision in (rule.branch, staged)
        )
    except RevisionNotFoundError:
        return None
    except NETWORK_ERRORS:
        raise PushError(
            f"The push to {repo_id} failed at its last step: {_reason(error)} Whether the branch {rule.branch!r} moved "
            "could not be asked: it is the old version or the whole new one. Run the same command again."
        ) from error
    trees = [{each.rfilename: each.blob_id for each in info.siblings or []} for info in (there, wanted)]
    return str(there.sha) if trees[0] == trees[1] else None


def _open_pull_request(
    api: HfApi, files: dict[str, Path], remote: _Remote, rule: PushRule, report: PushReport, downloaded: Path
) -> PushReport:
    """The pull request is its own staging branch: the branch that people load is not touched at all."""
    done = api.create_commit(
        report.repo_id,
        operations=_operations(files, remote),
        commit_message=rule.message,
        revision=rule.branch,
        create_pr=True,
    )
    report.commit, report.pull_request = done.oid, done.pr_url
    try:
        _check_download(report.repo_id, done.oid, files, downloaded, api.token, rule)
    except (PushError, VerificationError, *NETWORK_ERRORS) as error:
        raise PushError(f"Close the pull request {done.pr_url}, which was opened but not verified. {error}") from error
    return report


def _operations(files: dict[str, Path], remote: _Remote) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What makes a branch hold exactly these files, and what others put there."""
    states = {name.split("/")[0] for name in files if name.endswith("/trainer_state.json")}
    replaced = (*REPLACED, *(f"{state}/{pattern}" for state in states for pattern in TRAINING_STATE))
    stale = [name for name in remote.files if name not in files and _matches(name, replaced)]
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    parts = PurePosixPath(name).parts
    return any(len(parts) == len(PurePosixPath(each).parts) and PurePosixPath(name).match(each) for each in patterns)


def _digest(files: dict[str, Path]) -> str:
    """Name of what is pushed."""
    digest = hashlib.sha256()
    for name, path in files.items():
        with path.open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _require_ours(repo_id: str, present: list[str], rule: PushRule) -> None:
    foreign = [name for name in present if _matches(name, ("config.json", "*.safetensors", "*.bin", "*.gguf"))]
    if foreign and "reward_config.json" not in present and not rule.replace:
        raise ValueError(
            f"{repo_id} already holds another model ({', '.join(foreign[:3])}). Choose another name, push to a branch "
            "(`--branch`), or replace it knowingly with `--replace`."
        )


def _validate_card(path: Path) -> None:
    try:
        ModelCard.load(path, ignore_metadata_errors=False).validate()
    except (ValueError, YAMLError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"The card's metadata is not valid, so nothing was pushed: {said}. Correct README.md."
        ) from error


def _check_download(
    repo_id: str, commit: str, files: dict[str, Path], target: Path, token: Any, rule: PushRule
) -> None:
    """Download what was staged, compare it byte by byte, and score the probes with it."""
    snapshot_download(repo_id, revision=commit, allow_patterns=list(files), local_dir=target, token=token)
    wrong = [
        name
        for name, path in files.items()
        if not (target / name).is_file() or not filecmp.cmp(path, target / name, shallow=False)
    ]
    if wrong:
        raise PushError(f"{len(wrong)} files came back from {repo_id} changed or not at all, such as {wrong[0]}.")
    found = verify_checkpoint(target, trust_remote_code=rule.trust_remote_code)
    if not found.equal:
        raise VerificationError(f"What came back from {repo_id} does not give the recorded rewards. {found}", found)


@contextmanager
def explained(repo_id: str, state: str) -> Iterator[None]:
    """Say in one sentence what the Hub did not like, and how things stand.

    Args:
        repo_id: What was pushed to.
        state: What is on the Hub now.

    Raises:
        PushError: Instead of the client's errors.
        ValueError: If the id is none.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no Hub id: {error}") from error
    except NETWORK_ERRORS as error:
        raise PushError(
            f"The push to {repo_id} failed: {_reason(error)} {state} Run the same command again."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token. Log in with `hf auth login`, or set HF_TOKEN."
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = without_tokens(" ".join(str(getattr(error, "server_message", None) or "").split()))
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            f"the token has no right to write there (status {status}{said and ': '}{said}). Log in with "
            "`hf auth login`, or ask its owner."
        )
    if status == 412:
        return "somebody else's commit came first."
    lines = said or next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {without_tokens(lines).rstrip('.')}."
