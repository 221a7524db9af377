"""Folder of what may be published -> branch of a repository on the Hub, in one step or not at all.

Files go to a staging branch, are downloaded back and scored again; only then does one commit move the branch that
people load. A push that fails at any point leaves that branch as it was; running it again sends no weights twice.
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


def publish(api: HfApi, assembled: Path, repo_id: str, rule: PushRule, downloaded: Path) -> PushReport:
    """Publish the files of a folder.

    Args:
        api: The client.
        assembled: What may be published.
        repo_id: `user/name` on the Hub.
        rule: How to publish it.
        downloaded: A new folder for what comes back from the Hub.

    Returns:
        What was published.

    Raises:
        VerificationError: If what came back from the Hub does not give the recorded rewards.
        PushError: If the Hub refuses or fails; the published branch is as it was.
        ValueError: If the card is not valid, or the repository holds something else.
    """
    with explained(repo_id, f"The branch {rule.branch!r} was not changed."):
        _validate_card(assembled / "README.md", api.endpoint)
        url = api.create_repo(repo_id, private=rule.private, exist_ok=True)
        remote = _look(api, repo_id, rule)
        if rule.private and not remote.private:
            api.update_repo_settings(repo_id, private=True)  # before anything new can be seen
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
    with explained(repo_id, f"The new version is on the branch {rule.branch!r}, but not all settings are made."):
        if rule.private is False and remote.private:
            api.update_repo_settings(repo_id, private=False)
        if rule.gated is False and remote.gated:
            api.update_repo_settings(repo_id, gated=False)
    return report


def full_name(api: HfApi, repo_id: str) -> str:
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


@dataclass(frozen=True, kw_only=True)
class _Push:
    """One push: what goes where."""

    api: HfApi
    repo_id: str
    rule: PushRule
    files: dict[str, Path]
    """The files by their paths in the repository."""
    remote: _Remote
    downloaded: Path
    """A new folder for what comes back."""

    def commit(self, **options: Any) -> CommitInfo:
        """Commit what makes a branch hold exactly these files, and what others put there."""
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
        """A fresh branch for this version, removed at the end; a killed push of the same files left one of that name.

        Args:
            report: Takes a note if the branch could not be removed.

        Yields:
            str: Its name.
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
                note = f"The branch {staging} could not be deleted ({_reason(error)}); the next push does it."
                report.notes.append(note)

    def move(self, staged: str) -> str:
        """Let the branch be what was staged, in one step, and return its commit."""
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
        """The branch's commit if it holds what was staged, although the answer to that was an error or got lost."""
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
                f"The push to {self.repo_id} failed at its last step: {_reason(error)} Whether the branch {branch!r} "
                "moved could not be asked: it is the old version or the whole new one. Run the same command again."
            ) from error
        trees = [{each.rfilename: each.blob_id for each in info.siblings or []} for info in (there, wanted)]
        return str(there.sha) if trees[0] == trees[1] else None

    def open_pull_request(self, report: PushReport) -> PushReport:
        """The pull request is its own staging branch: the branch that people load is not touched at all."""
        done = self.commit(revision=self.rule.branch, create_pr=True)
        report.commit, report.pull_request = done.oid, done.pr_url
        try:
            self.check_download(done.oid)
        except (PushError, VerificationError, *NETWORK_ERRORS) as error:
            message = f"Close the pull request {done.pr_url}, which was opened but not verified. {error}"
            raise PushError(message) from error
        return report

    def check_download(self, commit: str) -> None:
        """Download what was staged, compare it byte by byte, and score the probes with it."""
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
                f"{len(wrong)} files came back from {self.repo_id} changed or not at all, such as {wrong[0]}."
            )
        found = verify_checkpoint(target, trust_remote_code=self.rule.trust_remote_code)
        if not found.equal:
            raise VerificationError(
                f"What came back from {self.repo_id} does not give the recorded rewards. {found}", found
            )


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


def _validate_card(path: Path, endpoint: str) -> None:
    """Let the Hub check the card before anything is made there."""
    try:
        content = str(ModelCard.load(path, ignore_metadata_errors=False))
        # `ModelCard.validate` of huggingface_hub 1 asks huggingface.co, whatever HF_ENDPOINT says.
        body = {"repoType": "model", "content": content}
        response = get_session().post(f"{endpoint}/api/validate-yaml", json=body, headers={"Accept": "text/plain"})
        if response.status_code == 400:
            raise ValueError(response.text)
        hf_raise_for_status(response)
    except (ValueError, YAMLError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"The card's metadata is not valid, so nothing was pushed: {said}. Correct README.md."
        ) from error


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
