"""The endpoints of the Hub that huggingface_hub 2.4 calls, as functions from a request to a response.

`HubApi.answer` finds the endpoint by method and path. Nothing here knows sockets or faults: that is `hub_server`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, unquote

from hub_metadata import InvalidMetadata, check_card, check_evaluation_results, read_metadata
from hub_store import LFS_SUFFIXES, Account, Blob, Commit, Discussion, HubError, Repository, Store, require_account

REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
REPO_PAGE = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+?)"
REVISION = r"/(?P<revision>[^/]+)"


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    account: Account | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # the parts of the path that the endpoint names

    @property
    def repo(self) -> tuple[str, str, Account | None]:
        """The kind and the id of the repository in the path, and who asks."""
        return self.names.get("kind", "model"), self.names["repo_id"], self.account

    @property
    def revision(self) -> str:
        """The revision in the path."""
        return self.names.get("revision", "main")

    @property
    def json(self) -> dict[str, Any]:
        """The body of a JSON request."""
        return json.loads(self.body or b"{}")

    @property
    def create_pr(self) -> bool:
        """Whether a new pull request is to receive the change."""
        return self.query.get("create_pr") == ["1"]


@dataclass(frozen=True)
class Response:
    """What the Hub answers: JSON, or the bytes of a file."""

    status: int = 200
    content: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The bytes to send."""
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


def refusal(error: HubError) -> Response:
    """The answer to a refused request; its headers tell the client which exception to raise."""
    headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
    return Response(error.status, {"error": error.message, **error.details}, headers)


Endpoint = Callable[..., Response]
ROUTES: list[tuple[re.Pattern[str], Endpoint]] = []


def route(methods: str, path: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint for methods ("GET|HEAD") and a pattern of paths; its groups become `Request.names`."""

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((re.compile(f"(?:{methods}) {path}"), endpoint))
        return endpoint

    return register


class HubApi:
    """The endpoints over one store.

    Args:
        store: The repositories.
        accounts: The account of each token.
        lfs: Whether files with the suffix of weights are stored as LFS, or every file as a regular one.
    """

    def __init__(self, store: Store, accounts: Mapping[str, Account], lfs: bool) -> None:
        self.store = store
        self.accounts = accounts
        self.lfs = lfs
        self.endpoint = ""

    def answer(self, request: Request) -> Response:
        """Do what a request asks, or refuse it."""
        try:
            for pattern, endpoint in ROUTES:
                if match := pattern.fullmatch(f"{request.method} {request.path}"):
                    names = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
                    return endpoint(self, replace(request, account=self.account(request), names=names))
            raise HubError(404, f"The test Hub has no endpoint {request.method} {request.path}")
        except HubError as error:
            return refusal(error)

    def account(self, request: Request) -> Account | None:
        """Who asks; None for a request without a token."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.accounts:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.accounts[token]

    def page(self, repository: Repository) -> str:
        """The URL of a repository's page."""
        prefix = "" if repository.kind == "model" else f"{repository.kind}s/"
        return f"{self.endpoint}/{prefix}{repository.repo_id}"

    # -- accounts and repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Response:
        """Who the token belongs to, and whether it may write."""
        user = require_account(request.account)
        organizations = [{"type": "org", "name": name} for name in user.organizations]
        token = {"displayName": "test", "role": user.role}
        auth = {"type": "access_token", "accessToken": token}
        content = {"type": "user", "name": user.name, "fullname": user.name, "orgs": organizations, "auth": auth}
        return Response(content=content)

    @route("GET", "/api/agent-harnesses")
    def agent_harnesses(self, request: Request) -> Response:
        """The client's list of coding agents: none is known, so that no test depends on who runs it."""
        return Response(content={"standardEnvVars": [], "harnesses": {}})

    @route("POST", "/api/repos/create")
    def create_repo(self, request: Request) -> Response:
        """Create a repository; 409 with its URL if it exists."""
        kind, repo_id = _named_repo(request)
        private = request.json.get("visibility") == "private"
        try:
            repository = self.store.create(kind, repo_id, request.account, private)
        except HubError as error:
            if error.status == 409:
                error.details["url"] = self.page(self.store.repositories[kind, repo_id])
            raise
        return Response(content={"url": self.page(repository), "name": repo_id})

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self, request: Request) -> Response:
        """Delete a repository."""
        self.store.delete(*_named_repo(request), request.account)
        return Response()

    @route("PUT", f"{REPO}/settings")
    def settings(self, request: Request) -> Response:
        """Change the visibility and the gate."""
        repository = self.store.writable(*request.repo)
        visibility = request.json.get("visibility", "private" if repository.private else "public")
        gated = request.json.get("gated", repository.gated)
        if visibility not in ("public", "private") or gated not in ("auto", "manual", False):
            raise HubError(400, "Invalid settings")
        repository.private, repository.gated = visibility == "private", gated
        return Response(content={"private": repository.private, "gated": repository.gated})

    @route("GET", f"{REPO}(?:/revision{REVISION})?")
    def info(self, request: Request) -> Response:
        """Describe a repository at a revision, or only the fields of `expand`. A gate does not hide it."""
        repository = self.store.readable(*request.repo)
        commit = repository.find(request.revision)
        content = _describe_repository(repository, commit, with_blobs="blobs" in request.query)
        if expand := request.query.get("expand"):
            content = {name: value for name, value in content.items() if name in {"_id", "id", *expand}}
        return Response(content=content)

    # -- files

    @route("GET", f"{REPO}/tree{REVISION}(?:/(?P<folder>.+))?")
    def tree(self, request: Request) -> Response:
        """List files and folders, below a folder and recursively if asked."""
        commit = self.store.readable(*request.repo).find(request.revision)
        root = request.names.get("folder", "").strip("/")
        files = commit.under(root)
        if root and not files:
            raise HubError(404, f"{root} does not exist on {request.revision}", "EntryNotFound")
        recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        skipped = len(root) + 1 if root else 0
        paths = sorted(files.keys() | _folders(files))
        shown = [path for path in paths if len(path) > skipped and (recursive or "/" not in path[skipped:])]
        return Response(content=[_describe_path(commit, path) for path in shown])

    @route("POST", f"{REPO}/paths-info{REVISION}")
    def paths_info(self, request: Request) -> Response:
        """Describe the asked paths that exist."""
        commit = self.store.readable(*request.repo).find(request.revision)
        asked = [path.rstrip("/") for path in parse_qs(request.body.decode()).get("paths", [])]
        known = commit.files.keys() | _folders(commit.files)
        return Response(content=[_describe_path(commit, path) for path in asked if path in known])

    @route("GET|HEAD", rf"{REPO_PAGE}/(?:resolve|raw){REVISION}/(?P<path>.+)")
    def download(self, request: Request) -> Response:
        """Send a file or a range of it, or with HEAD its size and ETag."""
        commit = self.store.downloadable(*request.repo).find(request.revision)
        headers = {"X-Repo-Commit": commit.oid}
        blob = commit.files.get(request.names["path"])
        if blob is None:
            missing = refusal(HubError(404, "Entry not found", "EntryNotFound"))
            return Response(missing.status, missing.content, {**missing.headers, **headers})
        headers |= {"ETag": f'"{blob.content_id}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        return _part_of(blob.data, request.headers.get("Range", ""), headers)

    # -- commits

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Response:
        """Check the metadata of a card."""
        card = request.json["content"]
        try:
            metadata = check_card(card, request.json.get("repoType", "model"))
        except InvalidMetadata as error:
            return Response(400, {"errors": [{"message": text} for text in error.errors], "warnings": []})
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return Response(content={"errors": [], "warnings": warnings})

    @route("POST", f"{REPO}/preupload{REVISION}")
    def preupload(self, request: Request) -> Response:
        """Tell how each file is to be uploaded, and what the Hub has at its path."""
        ref = None if request.create_pr else request.revision
        repository = self.store.committable(*request.repo, ref)
        known = repository.find(repository.commit_ref(request.revision)).files
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if self.lfs and file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": known[file["path"]].content_id if file["path"] in known else None,
            }
            for file in request.json["files"]
        ]
        return Response(content={"files": files})

    @route("POST", f"{REPO}/commit{REVISION}")
    def commit(self, request: Request) -> Response:
        """Commit to a branch or a pull request, or open a pull request with the commit."""
        repository = self.store.committable(*request.repo, None if request.create_pr else request.revision)
        operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        commit = repository.commit(
            request.revision, operations, require_account(request.account).name, request.create_pr
        )
        page = self.page(repository)
        content = {"success": True, "commitOid": commit.oid, "commitUrl": f"{page}/commit/{commit.oid}"}
        if request.create_pr:
            content["pullRequestUrl"] = f"{page}/discussions/{repository.discussions[-1].number}"
        return Response(content=content)

    @route("POST", rf"{REPO_PAGE}\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request) -> Response:
        """Tell where to upload the LFS objects that are missing."""
        ref = request.json.get("ref", {}).get("name")
        repository = self.store.committable(*request.repo, ref)
        objects = []
        for asked in request.json["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repository.lfs_objects:
                repository.uploads.setdefault(asked["oid"], b"")
                objects_page = f"{self.page(repository)}.git/info/lfs/objects"
                hrefs = {"upload": f"{objects_page}/{asked['oid']}", "verify": f"{objects_page}/verify"}
                answer["actions"] = {action: {"href": href} for action, href in hrefs.items()}
            objects.append(answer)
        return Response(content={"transfer": "basic", "objects": objects})

    @route("PUT", rf"{REPO_PAGE}\.git/info/lfs/objects/(?P<oid>[0-9a-f]{{64}})")
    def lfs_upload(self, request: Request) -> Response:
        """Receive an LFS object in one part."""
        kind, repo_id, _ = request.repo  # a signed URL: whoever has it may upload, without a token
        repository = self.store.repositories.get((kind, repo_id))
        if repository is None or request.names["oid"] not in repository.uploads:
            raise HubError(403, "This upload was not announced by a batch request")
        repository.uploads[request.names["oid"]] = request.body
        return Response(content=b"", headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    @route("POST", rf"{REPO_PAGE}\.git/info/lfs/objects/verify")
    def lfs_verify(self, request: Request) -> Response:
        """Accept an uploaded LFS object whose size and sha256 are right."""
        repository = self.store.committable(*request.repo, None)
        oid, size = request.json["oid"], request.json["size"]
        data = repository.uploads.get(oid, b"")
        if len(data) != size or hashlib.sha256(data).hexdigest() != oid:
            raise HubError(400, f"The uploaded object is not {oid} of {size} bytes")
        repository.lfs_objects[oid] = data
        return Response()

    # -- refs, history and discussions

    @route("GET", f"{REPO}/refs")
    def list_refs(self, request: Request) -> Response:
        """List branches and tags, and pull requests if asked."""
        refs = self.store.readable(*request.repo).refs

        def listed(prefix: str, is_full_name: bool = False) -> list[dict[str, str]]:
            return [
                {"name": ref if is_full_name else ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
                for ref, oid in refs.items()
                if ref.startswith(prefix)
            ]

        content = {"branches": listed("refs/heads/"), "tags": listed("refs/tags/"), "converts": []}
        if "include_prs" in request.query:
            content["pullRequests"] = listed("refs/pr/", is_full_name=True)
        return Response(content=content)

    @route("GET", f"{REPO}/commits{REVISION}")
    def list_commits(self, request: Request) -> Response:
        """List a revision's commits, the newest first."""
        return Response(
            content=[
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.message,
                    "authors": [{"user": commit.author}],
                    "date": commit.date,
                }
                for commit in self.store.readable(*request.repo).history(request.revision)
            ]
        )

    @route("POST|DELETE", f"{REPO}/branch/(?P<branch>[^/]+)")
    def branch(self, request: Request) -> Response:
        """Create or delete a branch."""
        repository = self.store.writable(*request.repo)
        branch = request.names["branch"]
        if branch.startswith("refs/"):
            raise HubError(400, f"Invalid branch name: {branch}")
        if request.method == "POST":
            repository.create_ref(f"refs/heads/{branch}", request.json.get("startingPoint", "main"))
        else:
            repository.delete_ref(f"refs/heads/{branch}")
        return Response()

    @route("POST|DELETE", f"{REPO}/tag{REVISION}")
    def tag(self, request: Request) -> Response:
        """Create or delete a tag."""
        repository = self.store.writable(*request.repo)
        if request.method == "POST":
            repository.create_ref(f"refs/tags/{request.json['tag']}", request.revision)
        else:
            repository.delete_ref(f"refs/tags/{request.revision}")
        return Response()

    @route("GET|POST", f"{REPO}/discussions")
    def discussions(self, request: Request) -> Response:
        """List the discussions, or open one."""
        repository = self.store.readable(*request.repo)
        if request.method == "GET":
            listed = [_describe_discussion(repository, discussion) for discussion in repository.discussions]
            return Response(content={"count": len(listed), "start": 0, "discussions": listed})
        repository = self.store.committable(*request.repo, None)
        author, asked = require_account(request.account).name, request.json
        discussion = repository.open_discussion(asked["title"], asked["description"], author, asked["pullRequest"])
        return Response(content={"num": discussion.number, "pullRequest": discussion.is_pull_request})

    @route("GET", f"{REPO}/discussions/(?P<number>[0-9]+)")
    def discussion(self, request: Request) -> Response:
        """Describe a discussion."""
        repository = self.store.readable(*request.repo)
        discussion = repository.discussion(int(request.names["number"]))
        content = _describe_discussion(repository, discussion) | {"events": []}
        if discussion.is_pull_request:
            content |= {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "diff": ""}
        return Response(content=content)


def _named_repo(request: Request) -> tuple[str, str]:
    namespace = request.json.get("organization") or require_account(request.account).name
    return request.json.get("type", "model"), f"{namespace}/{request.json['name']}"


def _folders(paths: Mapping[str, Blob]) -> set[str]:
    return {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/"}


def _describe_path(commit: Commit, path: str) -> dict[str, Any]:
    if path not in commit.files:
        content_ids = "".join(blob.content_id for blob in commit.under(path).values())
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(content_ids.encode()).hexdigest()}
    blob = commit.files[path]
    description = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
    if blob.lfs:
        description["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return description


def _describe_repository(repository: Repository, commit: Commit, with_blobs: bool) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    card = read_metadata(readme.text) if readme else {}
    siblings = []
    for path, blob in sorted(commit.files.items()):
        siblings.append({"rfilename": path})
        if with_blobs:
            siblings[-1] |= {"size": len(blob.data), "blobId": blob.git_oid}
            if blob.lfs:
                lfs = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
                siblings[-1]["lfs"] = lfs
    results = [
        {"filename": path, "data": entry}
        for path, blob in commit.under(".eval_results").items()
        for entry in check_evaluation_results(blob.data, path)
    ]
    return {
        "_id": repository.repo_id,
        "id": repository.repo_id,
        "modelId": repository.repo_id,
        "author": repository.namespace,
        "sha": commit.oid,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "lastModified": commit.date,
        "createdAt": next(iter(repository.commits.values())).date,
        "tags": card.get("tags", []),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "evalResults": results,
        "siblings": siblings,
    }


def _describe_discussion(repository: Repository, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.number,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.date,
        "status": "open",
        "isPullRequest": discussion.is_pull_request,
        "repo": {"name": repository.repo_id, "type": repository.kind},
    }


def _part_of(data: bytes, asked_range: str, headers: Mapping[str, str]) -> Response:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked_range)
    if match is None:
        return Response(200, data, headers)
    start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if start > end:
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Response(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})
