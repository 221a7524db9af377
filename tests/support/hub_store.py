"""State of the test Hub: repositories with commits, refs, LFS objects, discussions and permissions.

Nothing here knows HTTP. A refused action raises `HubError` with the status and the error code that the Hub answers, and
leaves the state as it was. The caller holds one lock around each action.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from hub_metadata import InvalidMetadata, check_card, check_evaluation_results

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".onnx", ".parquet")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
SHORTEST_COMMIT_PREFIX = 7
COMMIT_OID_LENGTH = 40


class HubError(Exception):
    """An action that the Hub refuses.

    Args:
        status: The HTTP status.
        message: What the client shows.
        code: The Hub's error code, which decides the class of the client's exception.
        details: Further fields of the answer.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.details = details


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and whether that token may write."""

    name: str
    role: Literal["read", "write"] = "write"
    organizations: tuple[str, ...] = ()

    def belongs_to(self, namespace: str) -> bool:
        """Whether the account owns the namespace or is a member of it."""
        return namespace == self.name or namespace in self.organizations


@dataclass(frozen=True)
class Blob:
    """The content of a file and how it is stored."""

    data: bytes
    lfs: bool = False

    @property
    def text(self) -> str:
        """The content of a text file."""
        return self.data.decode("utf-8", errors="replace")

    @cached_property
    def sha256(self) -> str:
        """The LFS oid."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git stores in place of an LFS file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def git_oid(self) -> str:
        """The oid of the git object: of the pointer for an LFS file."""
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def content_id(self) -> str:
        """What the client compares to tell whether a file has changed; also the ETag."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """One state of all the files."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Blob]

    def under(self, folder: str) -> dict[str, Blob]:
        """The files below a folder; all of them for the root `""`."""
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        return {path: blob for path, blob in self.files.items() if path.startswith(prefix)}


@dataclass
class Discussion:
    """A discussion, or a pull request with a ref of its own."""

    number: int
    title: str
    description: str
    author: str
    is_pull_request: bool
    date: str

    @property
    def ref(self) -> str:
        """The ref that the commits of a pull request go to."""
        return f"refs/pr/{self.number}"


@dataclass
class Repository:
    """A repository of one kind ("model", "dataset" or "space")."""

    kind: str
    repo_id: str
    private: bool = False
    gated: Literal["auto", "manual", False] = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)  # LFS objects that a batch announced, not yet verified
    lfs_objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The user or the organization that owns the repository."""
        return self.repo_id.split("/")[0]

    def find(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a full ref or a (shortened) oid names."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if SHORTEST_COMMIT_PREFIX <= len(revision) <= COMMIT_OID_LENGTH:
            found = [commit for oid, commit in self.commits.items() if oid.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        """The commit and its ancestors, the newest first."""
        commits = [self.find(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commits[parent])
        return commits

    def commit_ref(self, revision: str) -> str:
        """The full ref that a commit to the revision moves: a branch or a pull request."""
        for ref in (revision, f"refs/heads/{revision}"):
            if ref in self.refs and not ref.startswith("refs/tags/"):
                return ref
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add_commit(
        self, ref: str, parent: Commit | None, files: Mapping[str, Blob], author: str, title: str, message: str = ""
    ) -> Commit:
        """Record a commit and move the ref to it."""
        content = sorted((path, blob.content_id) for path, blob in files.items())
        seed = (self.kind, self.repo_id, len(self.commits), parent and parent.oid, title, content)
        oid = hashlib.sha1(repr(seed).encode()).hexdigest()
        commit = Commit(oid, parent.oid if parent else None, title, message, author, _now(), dict(files))
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit

    def commit(self, revision: str, operations: list[dict[str, Any]], author: str, create_pr: bool = False) -> Commit:
        """Apply the lines of a commit request: all of them, or none.

        With `create_pr` the commit goes to the ref of a new pull request, the last of `discussions` afterwards.
        """
        header, *changes = operations
        if header.get("key") != "header" or not str(header["value"].get("summary", "")).strip():
            raise HubError(400, "The first line must be a header with a summary")
        title, message = header["value"]["summary"], header["value"].get("description", "")
        expected_parent = header["value"].get("parentCommit")
        ref = self.commit_ref(revision)
        parent = self.find(expected_parent) if create_pr and expected_parent else self.find(ref)
        if expected_parent and not parent.oid.startswith(expected_parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for change in changes:
            self._apply(change["key"], change["value"], files)
        _check_files({path: blob for path, blob in files.items() if parent.files.get(path) != blob}, self.kind)
        if create_pr:
            ref = self.open_discussion(title, message, author, is_pull_request=True).ref
        return self.add_commit(ref, parent, files, author, title, message)

    def _apply(self, key: str, value: Mapping[str, Any], files: dict[str, Blob]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            data = self.lfs_objects.get(value["oid"])
            if data is None or value.get("size", len(data)) != len(data):
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = Blob(data, lfs=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            gone = [name for name in files if name.startswith(f"{path.rstrip('/')}/")]
            if not gone:
                raise HubError(404, "A folder with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation {key!r}")

    def create_ref(self, ref: str, revision: str) -> None:
        """Point a new branch or tag to a commit."""
        if ref in self.refs:
            raise HubError(409, f"Reference already exists: {ref}")
        self.refs[ref] = self.find(revision).oid

    def delete_ref(self, ref: str) -> None:
        """Delete a branch or a tag."""
        if ref == "refs/heads/main":
            raise HubError(403, "The default branch cannot be deleted")
        if self.refs.pop(ref, None) is None:
            raise HubError(404, f"Reference does not exist: {ref}", "RevisionNotFound")

    def open_discussion(self, title: str, description: str, author: str, is_pull_request: bool) -> Discussion:
        """Open a discussion; the ref of a pull request starts where `main` is."""
        number = len(self.discussions) + 1
        discussion = Discussion(number, title, description, author, is_pull_request, _now())
        self.discussions.append(discussion)
        if is_pull_request:
            self.refs[discussion.ref] = self.refs["refs/heads/main"]
        return discussion

    def discussion(self, number: int) -> Discussion:
        """The discussion of a number."""
        if not 1 <= number <= len(self.discussions):
            raise HubError(404, "Discussion not found")
        return self.discussions[number - 1]


@dataclass
class Store:
    """Every repository, with the rules of access."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)

    def create(self, kind: str, repo_id: str, account: Account | None, private: bool) -> Repository:
        """Create a repository, with the Hub's first commit."""
        owner = require_account(account)
        namespace = repo_id.split("/")[0]
        if owner.role == "read" or not owner.belongs_to(namespace):
            raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        if (kind, repo_id) in self.repositories:
            raise HubError(409, f"You already created this {kind} repo: {repo_id}")
        repository = Repository(kind, repo_id, private)
        first_files = {".gitattributes": Blob(GIT_ATTRIBUTES)}
        repository.add_commit("refs/heads/main", None, first_files, owner.name, "initial commit")
        self.repositories[kind, repo_id] = repository
        return repository

    def delete(self, kind: str, repo_id: str, account: Account | None) -> None:
        """Delete a repository with all it holds."""
        self.writable(kind, repo_id, account)
        del self.repositories[kind, repo_id]

    def readable(self, kind: str, repo_id: str, account: Account | None) -> Repository:
        """The repository, if the account may know that it exists."""
        repository = self.repositories.get((kind, repo_id))
        hidden = repository is not None and repository.private
        if repository is None or (hidden and not (account and account.belongs_to(repository.namespace))):
            if account is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, kind: str, repo_id: str, account: Account | None) -> Repository:
        """The repository, if the account may change it."""
        repository = self.readable(kind, repo_id, account)
        writer = require_account(account)
        if writer.role == "read" or not writer.belongs_to(repository.namespace):
            raise HubError(403, f"Forbidden: you don't have write access to {repo_id}")
        return repository

    def committable(self, kind: str, repo_id: str, account: Account | None, ref: str | None) -> Repository:
        """The repository, if the account may commit to the ref; None stands for a new pull request.

        Whoever may read a repository may open a pull request and commit to it.
        """
        repository = self.readable(kind, repo_id, account)
        writer = require_account(account)
        own = [talk.ref for talk in repository.discussions if talk.is_pull_request and talk.author == writer.name]
        if writer.role == "write" and (ref is None or ref in own):
            return repository
        return self.writable(kind, repo_id, account)

    def downloadable(self, kind: str, repo_id: str, account: Account | None) -> Repository:
        """The repository, if the account may read its files."""
        repository = self.readable(kind, repo_id, account)
        if not repository.gated:
            return repository
        if account is None:
            raise HubError(401, f"Access to {kind} {repo_id} is restricted. Please log in.", "GatedRepo")
        if not account.belongs_to(repository.namespace) and account.name not in repository.granted:
            message = f"Access to {kind} {repo_id} is restricted and you are not in the authorized list."
            raise HubError(403, message, "GatedRepo")
        return repository


def require_account(account: Account | None) -> Account:
    """The account, or the Hub's refusal of a request without a token."""
    if account is None:
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    return account


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _check_files(changed: Mapping[str, Blob], kind: str) -> None:
    try:
        for path, blob in changed.items():
            if path == "README.md":
                check_card(blob.text, kind)
            elif path.startswith(".eval_results/") and path.endswith((".yaml", ".yml")):
                check_evaluation_results(blob.data, path)
    except InvalidMetadata as error:
        raise HubError(400, "Invalid metadata", errors=[{"message": text} for text in error.errors]) from error
