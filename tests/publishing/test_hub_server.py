"""The test Hub with the real client: stored files, refusals, and the state after each fault."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import randomize_head
from hub_metadata import read_metadata
from hub_server import (
    OTHER_TOKEN,
    OWNER_TOKEN,
    READ_TOKEN,
    FaultKind,
    HubServer,
    RequestRecord,
    hub_environment,
    run_module,
    run_python,
)
from transformers import AutoModelForSequenceClassification

PRELUDE = f"""
import json
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub import hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.utils import get_session

api = HfApi()
other, reader, anonymous = HfApi(token={OTHER_TOKEN!r}), HfApi(token={READ_TOKEN!r}), HfApi(token=False)

def outcome(call, *arguments, **options):
    "'ok', or the class of the exception and the status that it got."
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)]
    return "ok"

def add(path, content):
    return CommitOperationAdd(path, content.encode())

def commit(*operations, **options):
    return api.create_commit("user/model", operations, commit_message="change", **options)

result = {{}}
"""
VALID_CARD = """---
license: apache-2.0
language: [en, fr]
pipeline_tag: text-classification
library_name: transformers
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
datasets: [Anthropic/hh-rlhf, imdb]
metrics: [accuracy]
tags: [reward-model, rlhf]
model-index:
- name: judge
  results:
  - task: {type: text-classification}
    dataset: {type: allenai/reward-bench, name: RewardBench}
    metrics: [{type: accuracy, value: 0.9}]
---
# A judge
"""
EVALUATION = b"- dataset: {id: allenai/reward-bench, task_id: default}\n  value: 0.9\n"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def client(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a snippet with the real client and return its `result`."""

    def run(hub: HubServer, code: str, token: str | None = OWNER_TOKEN, **options: Any) -> dict[str, Any]:
        environment = hub_environment(hub, tmp_path, token=token, **options)
        done = run_python(f"{PRELUDE}\n{code}\nprint(json.dumps(result))", environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to push, with a file of weights and a path that needs quoting."""
    files = {
        "config.json": b'{"model_type": "bert"}',
        "model.safetensors": bytes(range(256)) * 64,
        "notes/a b+é.txt": "café".encode(),
        "README.md": VALID_CARD.encode(),
        ".eval_results/reward-bench.yaml": EVALUATION,
    }
    for name, content in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "folder"


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_commit(request: RequestRecord) -> bool:
    return request.method == "POST" and "/commit/" in request.path


def test_repositories_and_settings(hub: HubServer, client: Callable[..., dict[str, Any]]) -> None:
    result = client(
        hub,
        """
result["name"] = api.whoami()["name"]
result["url"] = api.create_repo("model").repo_id
result["again"] = outcome(api.create_repo, "user/model"), outcome(api.create_repo, "user/model", exist_ok=True)
result["team"] = outcome(api.create_repo, "team/model", private=True)
result["another owner"] = outcome(api.create_repo, "other/model")
result["dataset"] = outcome(api.create_repo, "user/rows", repo_type="dataset")
result["owner"] = outcome(other.create_repo, "other/model"), outcome(api.create_repo, "other/model", exist_ok=True)
api.update_repo_settings("user/model", gated="manual")
result["info"] = [api.model_info("user/model").gated, api.model_info("team/model").private]
result["expand"] = api.model_info("user/model", expand=["gated", "sha"]).siblings
result["deleted"] = outcome(api.delete_repo, "team/model"), outcome(api.delete_repo, "team/model")
result["exists"] = api.repo_exists("user/model"), api.repo_exists("team/model")
""",
    )
    assert result == {
        "name": "user",
        "url": "user/model",
        "again": [["HfHubHTTPError", 409], "ok"],
        "team": "ok",
        "another owner": ["HfHubHTTPError", 403],
        "dataset": "ok",
        "owner": ["ok", "ok"],
        "info": ["manual", True],
        "expand": None,
        "deleted": ["ok", ["RepositoryNotFoundError", 404]],
        "exists": [True, False],
    }
    assert hub.settings("user/model") == {"private": False, "gated": "manual"}
    assert (hub.exists("team/model"), hub.exists("user/rows", kind="dataset")) == (False, True)


def test_branches_and_tags(hub: HubServer, client: Callable[..., dict[str, Any]]) -> None:
    result = client(
        hub,
        """
api.create_repo("user/model")
api.create_branch("user/model", branch="runs/1")
result["branch"] = [
    outcome(api.create_branch, "user/model", branch="runs/1"),
    outcome(api.create_branch, "user/model", branch="runs/1", exist_ok=True),
    outcome(api.create_branch, "user/model", branch="x", revision="absent"),
    outcome(api.create_branch, "user/model", branch="refs/pr/5"),
    outcome(api.create_branch, "user/model", branch="gone"),
    outcome(api.delete_branch, "user/model", branch="gone"),
    outcome(api.delete_branch, "user/model", branch="gone"),
    outcome(api.delete_branch, "user/model", branch="main"),
]
result["tag"] = [
    outcome(api.create_tag, "user/model", tag="v1"),
    outcome(api.create_tag, "user/model", tag="v1"),
    outcome(api.create_tag, "user/model", tag="v1", exist_ok=True),
    outcome(api.create_tag, "user/model", tag="v2", revision="runs/1"),
    outcome(api.delete_tag, "user/model", tag="v1"),
    outcome(api.delete_tag, "user/model", tag="v1"),
]
refs = api.list_repo_refs("user/model")
result["refs"] = sorted(ref.ref for ref in refs.branches + refs.tags)
result["exists"] = api.revision_exists("user/model", "v2"), api.revision_exists("user/model", "v1")
""",
    )
    assert result == {
        "branch": [
            ["HfHubHTTPError", 409],
            "ok",
            ["RevisionNotFoundError", 404],
            ["BadRequestError", 400],
            "ok",
            "ok",
            ["RevisionNotFoundError", 404],
            ["HfHubHTTPError", 403],
        ],
        "tag": ["ok", ["HfHubHTTPError", 409], "ok", "ok", "ok", ["RevisionNotFoundError", 404]],
        "refs": ["refs/heads/main", "refs/heads/runs/1", "refs/tags/v2"],
        "exists": [True, False],
    }
    assert hub.refs("user/model").keys() == set(result["refs"])
    assert hub.head("user/model", "v2") == hub.head("user/model")


@pytest.mark.parametrize("lfs", [False, True])
def test_what_is_pushed_is_what_is_downloaded(
    client: Callable[..., dict[str, Any]], folder: Path, tmp_path: Path, lfs: bool
) -> None:
    with HubServer(lfs=lfs) as hub:
        result = client(
            hub,
            f"""
folder = {str(folder)!r}
api.create_repo("user/model")
first = api.upload_folder(repo_id="user/model", folder_path=folder)
result["unchanged"] = api.upload_folder(repo_id="user/model", folder_path=folder).oid == first.oid
api.upload_file(repo_id="user/model", path_in_repo="more.txt", path_or_fileobj=b"more")
snapshot_download("user/model", local_dir={str(tmp_path / "copy")!r}, ignore_patterns=".gitattributes")
result["old"] = outcome(hf_hub_download, "user/model", "more.txt", revision=first.oid)
result["short"] = outcome(hf_hub_download, "user/model", "config.json", revision=first.oid[:7])
result["entry"] = api.file_exists("user/model", "config.json"), api.file_exists("user/model", "absent.json")
result["revision"] = outcome(hf_hub_download, "user/model", "config.json", revision="absent")
result["root"] = [item.path for item in api.list_repo_tree("user/model")]
result["notes"] = [item.path for item in api.list_repo_tree("user/model", "notes")]
result["absent"] = outcome(lambda: list(api.list_repo_tree("user/model", "absent")))
result["paths"] = [item.path for item in api.get_paths_info("user/model", ["config.json", "notes/", "absent"])]
result["titles"] = [item.title for item in api.list_repo_commits("user/model")]
part = get_session().get(hf_hub_url("user/model", "model.safetensors"), headers={{"Range": "bytes=3-5"}})
result["range"] = part.status_code, list(part.content), part.headers["Content-Range"]
info = api.model_info("user/model")
result["card"] = info.card_data.base_model, info.eval_results[0].value
""",
        )
        expected = content_of(folder) | {"more.txt": b"more"}
        assert {path: data for path, data in hub.tree("user/model").items() if path != ".gitattributes"} == expected
        assert hub.stored_as_lfs("user/model") == ({"model.safetensors"} if lfs else set())
        downloaded = content_of(tmp_path / "copy")
        assert {path: data for path, data in downloaded.items() if not path.startswith(".cache")} == expected
        assert any(request.method == "PUT" for request in hub.requests) == lfs
        assert result == {
            "unchanged": True,
            "old": ["RemoteEntryNotFoundError", 404],
            "short": "ok",
            "entry": [True, False],
            "revision": ["RevisionNotFoundError", 404],
            "root": sorted({path.split("/")[0] for path in expected} | {".gitattributes"}),
            "notes": ["notes/a b+é.txt"],
            "absent": ["RemoteEntryNotFoundError", 404],
            "paths": ["config.json", "notes"],
            "titles": [
                "Upload more.txt with huggingface_hub",
                "Upload folder using huggingface_hub",
                "initial commit",
            ],
            "range": [206, [3, 4, 5], "bytes 3-5/16384"],
            "card": ["HuggingFaceTB/SmolLM2-135M-Instruct", 0.9],
        }


def test_a_commit_is_all_or_nothing(client: Callable[..., dict[str, Any]]) -> None:
    with HubServer(lfs=True) as hub:
        result = client(
            hub,
            """
api.create_repo("user/model")
first = commit(add("a.txt", "1"), add("old/b.txt", "2"), add("old/c.txt", "3"), add("model.bin", "weights"))
second = commit(
    add("a.txt", "4"),
    CommitOperationDelete("old/"),
    CommitOperationCopy("model.bin", "copy.bin"),
    CommitOperationDelete("model.bin"),
    parent_commit=first.oid,
)
result["heads"] = [first.oid, second.oid]
result["refused"] = [
    outcome(commit, add("d.txt", "5"), parent_commit=first.oid),
    outcome(commit, add("d.txt", "5"), CommitOperationDelete("absent.txt")),
    outcome(commit, add("d.txt", "5"), CommitOperationDelete("absent/")),
    outcome(commit, add("d.txt", "5"), revision="absent"),
    outcome(commit, add("d.txt", "5"), add(".eval_results/x.yaml", "- value: 3")),
]
result["short parent"] = outcome(commit, add("e.txt", "6"), parent_commit=second.oid[:8])
""",
        )
        first, second = result["heads"]
        assert result["refused"] == [
            ["HfHubHTTPError", 412],
            ["RemoteEntryNotFoundError", 404],
            ["RemoteEntryNotFoundError", 404],
            ["RevisionNotFoundError", 404],
            ["BadRequestError", 400],
        ]
        assert result["short parent"] == "ok"
        files = hub.tree("user/model", second)
        assert {path: files[path] for path in files if path != ".gitattributes"} == {
            "a.txt": b"4",
            "copy.bin": b"weights",
        }
        assert hub.stored_as_lfs("user/model", second) == {"copy.bin"}
        assert [commit.oid for commit in hub.history("user/model")][1:3] == [second, first]
        assert "d.txt" not in hub.tree("user/model")


def test_pull_requests(hub: HubServer, client: Callable[..., dict[str, Any]], folder: Path) -> None:
    result = client(
        hub,
        f"""
api.create_repo("user/model")
main = api.model_info("user/model").sha
opened = commit(add("a.txt", "1"), create_pr=True)
result["opened"] = opened.pr_revision, opened.pr_num
commit(add("b.txt", "2"), revision="refs/pr/1")
result["another's"] = [
    outcome(other.create_commit, "user/model", [add("c.txt", "3")], commit_message="c", create_pr=True),
    outcome(other.create_commit, "user/model", [add("d.txt", "4")], commit_message="d", revision="refs/pr/2"),
    outcome(other.create_commit, "user/model", [add("d.txt", "4")], commit_message="d", revision="refs/pr/1"),
    outcome(other.create_commit, "user/model", [add("d.txt", "4")], commit_message="d"),
]
result["folder"] = api.upload_folder(repo_id="user/model", folder_path={str(folder)!r}, create_pr=True).pr_url
result["listed"] = [(item.num, item.author) for item in api.get_repo_discussions("user/model")]
result["refs"] = [ref.ref for ref in api.list_repo_refs("user/model", include_pull_requests=True).pull_requests]
result["unchanged"] = api.model_info("user/model").sha == main
""",
    )
    forbidden = ["HfHubHTTPError", 403]
    assert result == {
        "opened": ["refs/pr/1", 1],
        "another's": ["ok", "ok", forbidden, forbidden],
        "folder": f"{hub.endpoint}/user/model/discussions/3",
        "listed": [[1, "user"], [2, "other"], [3, "user"]],
        "refs": ["refs/pr/1", "refs/pr/2", "refs/pr/3"],
        "unchanged": True,
    }
    assert hub.tree("user/model", "refs/pr/1").keys() == {".gitattributes", "a.txt", "b.txt"}
    assert hub.tree("user/model", "refs/pr/3").keys() == {".gitattributes", *content_of(folder)}


@pytest.mark.slow  # the fast tests load a pushed model by its id in test_push.py
def test_a_model_loads_by_its_id(
    client: Callable[..., dict[str, Any]], make_model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model_folder("llama")
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    randomize_head(model)
    model.save_pretrained(source)
    with HubServer(lfs=True) as hub:
        client(
            hub,
            f"""
from transformers import AutoModelForSequenceClassification, AutoTokenizer
api.create_repo("user/model")
api.upload_folder(repo_id="user/model", folder_path={str(source)!r}, revision="main")
AutoTokenizer.from_pretrained("user/model")
AutoModelForSequenceClassification.from_pretrained("user/model").save_pretrained({str(tmp_path / "loaded")!r})
""",
        )
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "loaded").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.skipif(huggingface_hub.__version__.startswith("1."), reason="its ModelCard.validate ignores HF_ENDPOINT")
def test_model_cards(hub: HubServer, client: Callable[..., dict[str, Any]]) -> None:
    invalid = "---\nlicense: my-own\nbase_model: ./runs/base\n---\n# A judge"
    result = client(
        hub,
        f"""
import warnings
api.create_repo("user/model")
card = ModelCard({VALID_CARD!r})
result["valid"] = outcome(card.validate), outcome(card.push_to_hub, "user/model")
result["loaded"] = ModelCard.load("user/model").data.to_dict() == card.data.to_dict()
try:
    ModelCard({invalid!r}).validate()
except ValueError as error:
    result["errors"] = [problem["message"][:14] for problem in json.loads(str(error))["errors"]]
invalid = ModelCard({invalid!r})
result["pushed"] = outcome(invalid.push_to_hub, "user/model")
result["upload"] = outcome(api.upload_file, repo_id="user/model", path_in_repo="README.md",
                           path_or_fileobj={invalid!r}.encode())
api._validate_yaml = lambda *arguments, **options: None
result["commit"] = outcome(commit, add("README.md", {invalid!r}), add("a.txt", "1"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    HfApi()._validate_yaml("# No metadata")
result["warnings"] = len(caught)
""",
    )
    assert result == {
        "valid": ["ok", "ok"],
        "loaded": True,
        "errors": ['"license" with', '"base_model" w'],
        "pushed": ["ValueError", None],
        "upload": ["ValueError", None],
        "commit": ["BadRequestError", 400],
        "warnings": 1,
    }
    assert hub.tree("user/model").keys() == {".gitattributes", "README.md"}
    assert read_metadata(hub.tree("user/model")["README.md"].decode()) == read_metadata(VALID_CARD)


def test_who_may_do_what(hub: HubServer, client: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    result = client(
        hub,
        f"folder = {str(tmp_path)!r}"
        """
import tempfile
def attempts(user):
    return [
        outcome(user.model_info, "user/model"),
        outcome(user.hf_hub_download, "user/model", "a.txt", cache_dir=tempfile.mkdtemp(dir=folder)),
        outcome(user.upload_file, repo_id="user/model", path_in_repo="b.txt", path_or_fileobj=b"2"),
    ]
users = {"owner": api, "reader": reader, "other": other, "anonymous": anonymous}
api.create_repo("user/model")
commit(add("a.txt", "1"))
for name, changes in {"public": {}, "gated": {"gated": "auto"}, "private": {"gated": False, "private": True}}.items():
    if changes:
        api.update_repo_settings("user/model", **changes)
    result[name] = {user: attempts(users[user]) for user in users}
result["reader"] = [
    outcome(reader.create_repo, "user/new"),
    outcome(reader.create_branch, "user/model", branch="b"),
    outcome(reader.create_tag, "user/model", tag="b"),
    outcome(reader.update_repo_settings, "user/model", private=False),
    outcome(reader.delete_repo, "user/model"),
    outcome(reader.create_commit, "user/model", [add("b.txt", "2")], commit_message="b", create_pr=True),
]
result["role"] = reader.whoami()["auth"]["accessToken"]["role"]
result["unknown"] = outcome(HfApi(token="hf_unknown").model_info, "user/model")
result["anonymous"] = outcome(anonymous.create_repo, "user/new")
""",
    )
    forbidden, no_access, log_in = ["HfHubHTTPError", 403], ["GatedRepoError", 403], ["GatedRepoError", 401]
    gone, unknown = ["RepositoryNotFoundError", 404], ["RepositoryNotFoundError", 401]
    assert result["public"] == {
        "owner": ["ok", "ok", "ok"],
        "reader": ["ok", "ok", forbidden],
        "other": ["ok", "ok", forbidden],
        "anonymous": ["ok", "ok", unknown],
    }
    assert result["gated"] == {
        "owner": ["ok", "ok", "ok"],
        "reader": ["ok", "ok", forbidden],
        "other": ["ok", no_access, forbidden],
        "anonymous": ["ok", log_in, unknown],
    }
    assert result["private"] == {
        "owner": ["ok", "ok", "ok"],
        "reader": ["ok", "ok", forbidden],
        "other": [gone, gone, gone],
        "anonymous": [unknown, unknown, unknown],
    }
    assert result["reader"] == [forbidden] * 6
    assert result["role"] == "read"
    assert result["unknown"] == ["HfHubHTTPError", 401]
    assert result["anonymous"][1] == 401
    assert OWNER_TOKEN not in repr(hub.requests)
    assert {request.authorized for request in hub.requests} == {True, False}


def test_a_granted_user_downloads_from_a_gated_repository(
    hub: HubServer, client: Callable[..., dict[str, Any]]
) -> None:
    download = 'result["got"] = outcome(hf_hub_download, "user/model", ".gitattributes")'
    client(hub, 'api.create_repo("user/model"); api.update_repo_settings("user/model", gated="manual")')
    assert client(hub, download, token=OTHER_TOKEN)["got"] == ["GatedRepoError", 403]
    hub.grant_access("user/model", "other")
    assert client(hub, download, token=OTHER_TOKEN)["got"] == "ok"


SINGLE_COMMIT: dict[FaultKind, tuple[Any, bool]] = {
    "500": (["HfHubHTTPError", 500], False),
    "500_after": (["HfHubHTTPError", 500], True),
    "reset": (["ReadError", None], False),
    "reset_after": (["ReadError", None], True),
    "slow": ("ok", True),
    "429": (["HfHubHTTPError", 429], False),
    "truncate": (["RemoteProtocolError", None], True),
}


def test_what_each_fault_leaves_of_a_commit(hub: HubServer, client: Callable[..., dict[str, Any]]) -> None:
    client(hub, 'api.create_repo("user/model")')
    for number, kind in enumerate(SINGLE_COMMIT):
        hub.fail_where(is_commit, kind, at=number, delay=0.2)
    hub.requests.clear()
    kinds = list(SINGLE_COMMIT)
    result = client(hub, f"for kind in {kinds}: result[kind] = outcome(commit, add(kind, kind))")
    assert result == {kind: expected for kind, (expected, _) in SINGLE_COMMIT.items()}
    committed = {kind for kind, (_, is_done) in SINGLE_COMMIT.items() if is_done}
    assert hub.tree("user/model").keys() == {".gitattributes", *committed}
    assert [request.fault for request in hub.requests if is_commit(request)] == kinds
    statuses = [request.status for request in hub.requests if is_commit(request)]
    assert statuses == [500, 500, None, None, 200, 429, 200]


@pytest.mark.parametrize(
    ("kind", "commits"), [("500", 1), ("500_after", 2), ("reset", 1), ("reset_after", 2), ("429", 1)]
)
def test_a_pushed_folder_is_committed_again_after_a_lost_answer(
    hub: HubServer, client: Callable[..., dict[str, Any]], folder: Path, kind: FaultKind, commits: int
) -> None:
    """With Xet, `upload_folder` retries its commit: a lost answer makes a second one, or a 412 with a parent."""
    hub.fail_where(is_commit, kind)
    result = client(
        hub,
        f"""
api.create_repo("user/model"); api.create_repo("user/parent")
upload = lambda repo, **options: api.upload_folder(repo_id=repo, folder_path={str(folder)!r}, **options)
result["pushed"] = outcome(upload, "user/model")
""",
    )
    assert result["pushed"] == "ok"
    assert len(hub.history("user/model")) == 1 + commits
    hub.fail_where(is_commit, kind)
    parent = hub.head("user/parent")
    pushed = client(
        hub,
        f'result["pushed"] = outcome(api.upload_folder, repo_id="user/parent", folder_path={str(folder)!r},'
        f" parent_commit={parent!r})",
    )["pushed"]
    assert pushed == ("ok" if commits == 1 else ["HfHubHTTPError", 412])
    assert hub.tree("user/parent").keys() == {".gitattributes", *content_of(folder)}


def test_faults_by_number_last_until_they_are_cleared(hub: HubServer, client: Callable[..., dict[str, Any]]) -> None:
    attempts = """
for number in range(4):
    result[number] = outcome(api.create_repo, f"user/model-{number}", exist_ok=True)
"""
    hub.fail(1, "500", times=2)
    assert list(client(hub, attempts).values()) == ["ok", ["HfHubHTTPError", 500], ["HfHubHTTPError", 500], "ok"]
    hub.fail(2, "reset", times=None)
    reset = ["ReadError", None]
    assert list(client(hub, attempts).values()) == ["ok", "ok", reset, reset]
    assert list(client(hub, attempts).values()) == [reset] * 4
    hub.clear_faults()
    assert list(client(hub, attempts).values()) == ["ok"] * 4


def test_interrupted_transfers_are_taken_up_again(
    client: Callable[..., dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    with HubServer(lfs=True) as hub:
        hub.fail_where(lambda request: request.method == "PUT", "reset", times=2)
        hub.fail_where(lambda request: request.path.endswith("/batch"), "500")
        hub.fail_where(lambda request: request.method == "GET" and "model.safetensors" in request.path, "truncate")
        result = client(
            hub,
            f"""
api.create_repo("user/model")
result["pushed"] = outcome(api.upload_folder, repo_id="user/model", folder_path={str(folder)!r})
snapshot_download("user/model", local_dir={str(tmp_path / "copy")!r})
""",
        )
        assert result["pushed"] == "ok"
        assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        downloads = [item for item in hub.requests if item.method == "GET" and "model.safetensors" in item.path]
        assert [(item.status, item.fault) for item in downloads] == [(200, "truncate"), (200, None)]
        uploads = [item.status for item in hub.requests if item.method == "PUT"]
        assert uploads == [None, None, 200]


def test_of_concurrent_commits_on_one_parent_exactly_one_wins(
    hub: HubServer, client: Callable[..., dict[str, Any]]
) -> None:
    result = client(
        hub,
        """
from concurrent.futures import ThreadPoolExecutor
api.create_repo("user/model")
parent = api.model_info("user/model").sha
with ThreadPoolExecutor(6) as pool:
    attempts = [pool.submit(outcome, commit, add(f"{number}.txt", "1"), parent_commit=parent) for number in range(6)]
result["outcomes"] = [attempt.result() for attempt in attempts]
""",
    )
    assert result["outcomes"].count("ok") == 1
    assert result["outcomes"].count(["HfHubHTTPError", 412]) == 5
    winner = result["outcomes"].index("ok")
    assert hub.tree("user/model").keys() == {".gitattributes", f"{winner}.txt"}


def test_a_command_runs_against_the_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_machine")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    done = run_module("huggingface_hub.cli.hf", ["repos", "create", "model"], hub_environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert hub.exists("user/model")
    environment = hub_environment(hub, tmp_path, token=None)
    assert "HF_TOKEN" not in environment
    assert "HTTPS_PROXY" not in environment
    assert run_module("huggingface_hub.cli.hf", ["repos", "create", "another"], environment).returncode != 0
