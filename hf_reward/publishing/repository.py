"""Staged folder -> branch of a repository on the Hub, in one atomic commit.

Files are uploaded to a staging branch, downloaded and scored again. Then one commit updates the published branch. A
push that fails at any point leaves that branch unchanged; a repeated push does not upload the same weights again.
"""

import filecmp
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_session,
    get_token,
    snapshot_download,
)
from huggingface_hub.constants import HF_TOKEN_PATH
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - httpx or httpx2, whichever the client has
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id
from yaml import YAMLError

from hf_reward.data.path_safety import warn_if_others_can_read
from hf_reward.publishing.card.text import without_tokens
from hf_reward.publishing.staged_files import REPLACED, TRAINING_STATE, PushRule
from hf_reward.publishing.verify import VerificationError, verify_checkpoint

NETWORK_ERRORS: tuple[type[Exception], ...] = (HTTPError, OSError, json.JSONDecodeError)
"""Errors of the client: those of its HTTP library (httpx or httpx2), of the system, and truncated answers."""


class PushError(RuntimeError):
    """A failed push. The message states the reason and the state of the published branch."""


@dataclass(kw_only=True)
class PushReport:
    """Result of a push."""

    repo_id: str
    commit: str
    url: str
    files: list[str] = field(default_factory=list)
    pull_request: str | None = None
    notes: list[str] = field(default_factory=list)


def publish(api: HfApi, assembled: Path, repo_id: str, rule: PushRule, downloaded: Path) -> PushReport:
    """Publish the files of a folder.

    Args:
        api: The client.
        assembled: Folder with the files to publish.
        repo_id: `user/name` on the Hub.
        rule: Options of the push.
        downloaded: A new folder for the download from the Hub.

    Returns:
        Report on the published files.

    Raises:
        VerificationError: If the download from the Hub does not give the recorded rewards.
        PushError: If the Hub refuses or fails; the published branch is unchanged.
        ValueError: If the card is not valid, or the repository contains another model.
    """
    with explained(repo_id, f"The branch {rule.branch!r} was not changed."):
        _validate_card(assembled / "README.md", api.endpoint)
        url = api.create_repo(repo_id, private=rule.private, exist_ok=True)
        remote = _look(api, repo_id, rule)
        if rule.private and not remote.private:
            api.update_repo_settings(repo_id, private=True)  # before new files are visible
        if rule.gated and remote.gated != rule.gated:
            api.update_repo_settings(repo_id, gated=rule.gated)  # type: ignore[arg-type]
        paths = [path for path in sorted(assembled.rglob("*")) if path.is_file()]
        files = {path.relative_to(assembled).as_posix(): path for path in paths}
        report = PushReport(repo_id=repo_id, commit=remote.sha, url=str(url), files=list(files))
        push = _Push(api=api, repo_id=repo_id, rule=rule, files=files, remote=remote, downloaded=downloaded)
        if rule.create_pr:
            return push.open_pull_request(report)
        with push.staging(report) as staging:
            staged = push.commit(revision=staging).oid
            push.check_download(staged)
            report.commit = push.move(staged)
    with explained(repo_id, f"The new version is on the branch {rule.branch!r}, but not all settings were changed."):
        if rule.private is False and remote.private:
            api.update_repo_settings(repo_id, private=False)
        if rule.gated is False and remote.gated:
            api.update_repo_settings(repo_id, gated=False)
    return report


def full_name(api: HfApi, repo_id: str) -> str:
    """Return the id with its owner. A missing token or an invalid id is an error before any change."""
    validate_repo_id(repo_id)
    if api.token is None and get_token() is None:
        raise LocalTokenNotFoundError("no token")
    if api.token is None:
        warn_if_others_can_read(HF_TOKEN_PATH)
    return repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"


@dataclass(frozen=True, kw_only=True)
class _Remote:
    """State of the repository before the push."""

    sha: str
    files: list[str]
    private: bool
    gated: str | bool
    has_branch: bool
    branches: list[str]


def _look(api: HfApi, repo_id: str, rule: PushRule) -> _Remote:
    branches = [each.name for each in api.list_repo_refs(repo_id).branches]
    has_branch = rule.branch in branches
    info = api.model_info(repo_id, revision=rule.branch if has_branch or rule.create_pr else "main")
    files = [each.rfilename for each in info.siblings or []]
    if has_branch:
        _require_own_model(repo_id, files, rule)
    return _Remote(
        sha=str(info.sha),
        files=files,
        private=bool(info.private),
        gated=info.gated or False,
        has_branch=has_branch,
        branches=branches,
    )


@dataclass(frozen=True, kw_only=True)
class _Push:
    """Files, target and options of one push."""

    api: HfApi
    repo_id: str
    rule: PushRule
    files: dict[str, Path]
    """Local files by path in the repository."""
    remote: _Remote
    downloaded: Path
    """A new folder for the download."""

    def commit(self, **options: Any) -> CommitInfo:
        """Commit these files and delete stale ones. Unrelated files in the repository stay."""
        states = {name.split("/")[0] for name in self.files if name.endswith("/trainer_state.json")}
        replaced = (*REPLACED, *(f"{state}/{pattern}" for state in states for pattern in TRAINING_STATE))
        stale = [name for name in self.remote.files if name not in self.files and _matches(name, replaced)]
        operations = [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in self.files.items()),
            *(CommitOperationDelete(path_in_repo=name) for name in stale),
        ]
        return self.api.create_commit(self.repo_id, operations, commit_message=self.rule.message, **options)

    @contextmanager
    def staging(self, report: PushReport) -> Iterator[str]:
        """Create a branch for this version and delete it at the end. A branch left by a killed push is replaced.

        Args:
            report: Gets a note if the branch could not be deleted.

        Yields:
            str: Name of the branch.
        """
        staging = f"hf-reward-staging-{self.rule.branch}-{_digest(self.files)[:12]}"
        if staging in self.remote.branches:
            self.api.delete_branch(self.repo_id, branch=staging)
        try:
            self.api.create_branch(self.repo_id, branch=staging, revision=self.remote.sha, exist_ok=True)
            yield staging
        finally:
            try:
                self.api.delete_branch(self.repo_id, branch=staging)
            except NETWORK_ERRORS as error:
                note = f"The branch {staging} could not be deleted ({_reason(error)}); the next push deletes it."
                report.notes.append(note)

    def move(self, staged: str) -> str:
        """Update the published branch to the staged files in one commit, and return that commit."""
        if staged == self.remote.sha and self.remote.has_branch:
            return staged
        try:
            if not self.remote.has_branch:
                self.api.create_branch(self.repo_id, branch=self.rule.branch, revision=staged)
                return staged
            return self.commit(revision=self.rule.branch, parent_commit=self.remote.sha).oid
        except NETWORK_ERRORS as error:
            head = self._head_if_moved(staged, error)
            if head is None:
                raise
            return head

    def _head_if_moved(self, staged: str, error: Exception) -> str | None:
        """Return the commit of the branch if it contains the staged files even though the request failed."""
        branch = self.rule.branch
        try:
            there, wanted = (
                self.api.model_info(self.repo_id, revision=revision, files_metadata=True)
                for revision in (branch, staged)
            )
        except RevisionNotFoundError:
            return None
        except NETWORK_ERRORS:
            raise PushError(
                f"The push to {self.repo_id} failed in its last step: {_reason(error)} The state of the branch "
                f"{branch!r} is unknown: it is either the old or the complete new version. Run the same command again."
            ) from error
        trees = [{each.rfilename: each.blob_id for each in info.siblings or []} for info in (there, wanted)]
        return str(there.sha) if trees[0] == trees[1] else None

    def open_pull_request(self, report: PushReport) -> PushReport:
        """Open a pull request and verify it. The published branch is not changed."""
        done = self.commit(revision=self.rule.branch, create_pr=True)
        report.commit, report.pull_request = done.oid, done.pr_url
        try:
            self.check_download(done.oid)
        except (PushError, VerificationError, *NETWORK_ERRORS) as error:
            message = f"The pull request {done.pr_url} was opened, but its verification failed. Close it. {error}"
            raise PushError(message) from error
        return report

    def check_download(self, commit: str) -> None:
        """Download the staged files, compare them byte by byte, and verify the rewards of the probes."""
        target = self.downloaded
        patterns = list(self.files)
        snapshot_download(
            self.repo_id, revision=commit, allow_patterns=patterns, local_dir=target, token=self.api.token
        )
        wrong = [
            name
            for name, path in self.files.items()
            if not (target / name).is_file() or not filecmp.cmp(path, target / name, shallow=False)
        ]
        if wrong:
            raise PushError(
                f"{len(wrong)} files are missing or changed in the download from {self.repo_id}, such as {wrong[0]}."
            )
        found = verify_checkpoint(target, trust_remote_code=self.rule.trust_remote_code)
        if not found.equal:
            raise VerificationError(
                f"The download from {self.repo_id} does not give the recorded rewards. {found}", found
            )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    parts = PurePosixPath(name).parts
    return any(len(parts) == len(PurePosixPath(each).parts) and PurePosixPath(name).match(each) for each in patterns)


def _digest(files: dict[str, Path]) -> str:
    """Return a hash of names and contents of the files."""
    digest = hashlib.sha256()
    for name, path in files.items():
        with path.open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _require_own_model(repo_id: str, present: list[str], rule: PushRule) -> None:
    other = [name for name in present if _matches(name, ("config.json", "*.safetensors", "*.bin", "*.gguf"))]
    if other and "reward_config.json" not in present and not rule.replace:
        raise ValueError(
            f"{repo_id} already contains another model ({', '.join(other[:3])}). Choose another name, push to a branch "
            "(`--branch`), or replace the model with `--replace`."
        )


def _validate_card(path: Path, endpoint: str) -> None:
    """Let the Hub validate the card before anything is created there."""
    try:
        content = str(ModelCard.load(path, ignore_metadata_errors=False))
        # `ModelCard.validate` of huggingface_hub 1 ignores HF_ENDPOINT and always uses huggingface.co.
        body = {"repoType": "model", "content": content}
        response = get_session().post(f"{endpoint}/api/validate-yaml", json=body, headers={"Accept": "text/plain"})
        if response.status_code == 400:
            raise ValueError(response.text)
        hf_raise_for_status(response)
    except (ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The card's metadata is not valid, so nothing was pushed: {reason}. Correct README.md."
        ) from error


@contextmanager
def explained(repo_id: str, state: str) -> Iterator[None]:
    """Turn errors of the client into one sentence with the reason and the state of the repository.

    Args:
        repo_id: Repository of the push.
        state: Sentence on the current state of the repository.

    Raises:
        PushError: Instead of the errors of the client.
        ValueError: If `repo_id` is not a Hub id.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a Hub id: {error}") from error
    except NETWORK_ERRORS as error:
        raise PushError(
            f"The push to {repo_id} failed: {_reason(error)} {state} Run the same command again."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "no token was found. Log in with `hf auth login`, or set HF_TOKEN."
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = without_tokens(" ".join(str(getattr(error, "server_message", None) or "").split()))
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            f"the token has no write access (status {status}{message and ': '}{message}). Log in with `hf auth login`, "
            "or ask the owner for access."
        )
    if status == 412:
        return "another commit was pushed in the meantime."
    lines = message or next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {without_tokens(lines).rstrip('.')}."
