"""A local Hub for tests: it supports the requests of huggingface_hub 2.4, and fails on request.

    with HubServer(lfs=True) as hub:
        hub.fail_where(lambda request: "/commit/" in request.path, "500_after")
        run_python("from huggingface_hub import create_repo; create_repo('user/model')", hub_environment(hub, tmp_path))
        assert hub.tree("user/model") == {...}

The client reads its endpoint when it is imported, so it runs in a process of its own: `run_python` and `run_module`.
"""

import contextlib
import copy
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

from hub_api import HubApi, Request, Response, refusal
from hub_store import Account, Blob, Commit, HubError, Repository, Store

FaultKind = Literal["500", "500_after", "reset", "reset_after", "slow", "429", "truncate", "corrupt"]

OWNER_TOKEN = "hf_owner"
READ_TOKEN = "hf_read_only"
OTHER_TOKEN = "hf_other"
ACCOUNTS = {
    OWNER_TOKEN: Account("user", organizations=("team",)),
    READ_TOKEN: Account("user", role="read", organizations=("team",)),
    OTHER_TOKEN: Account("other"),
}
# the client asks these for itself, at times of its own choosing
UNCOUNTED_PATHS = frozenset({"/api/agent-harnesses"})

# the client's waits between retries are fixed (1, 2, 4, 8 and 8 s); a child process may shorten them
QUICK_RETRIES = """
def _shorten_the_waits_of_the_client():
    import time, types
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http
    quick = types.SimpleNamespace(**vars(time))
    quick.sleep = lambda seconds: time.sleep(min(seconds, 0.02))
    _http.time = file_download.time = quick
_shorten_the_waits_of_the_client()
"""


@dataclass
class RequestRecord:
    """A request as the server saw it; never the token.

    Args:
        method: The HTTP method.
        path: The unquoted path, without the query.
        query: The query.
        authorized: Whether an `Authorization` header came along.
        status: What was answered; None as long as nothing was, or when the connection was reset.
        fault: The fault that hit the request.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    authorized: bool
    status: int | None = None
    fault: FaultKind | None = None


RequestPredicate = Callable[[RequestRecord], bool]


@dataclass
class Fault:
    """A fault that waits for its requests.

    Args:
        kind: What happens.
        matches: Which requests count.
        skip: How many of them pass before the first is hit.
        times: How many are hit; None for all from then on.
        delay: The seconds that a "slow" answer takes.
    """

    kind: FaultKind
    matches: RequestPredicate
    skip: int
    times: int | None
    delay: float

    def hits(self, record: RequestRecord) -> bool:
        """Count a request, and tell whether the fault is for it."""
        if self.times == 0 or not self.matches(record):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Moment:
    """Something to do when a request comes.

    Args:
        matches: Which requests count.
        skip: How many of them pass before.
        action: What is done, once.
        after: Whether it is done when the request has been acted on, and not before.
    """

    matches: RequestPredicate
    skip: int
    action: Callable[[], object]
    after: bool


class HubServer:
    """The test Hub on a free port of 127.0.0.1.

    Args:
        lfs: Whether the files of weights are stored as LFS (for clients without Xet), or every file as a regular one.
        accounts: The account of each token; `ACCOUNTS` by default.
    """

    def __init__(self, *, lfs: bool = False, accounts: Mapping[str, Account] = ACCOUNTS) -> None:
        self.requests: list[RequestRecord] = []
        self._lock = threading.RLock()
        self._faults: list[Fault] = []
        self._moments: list[Moment] = []
        self._busy = 0
        self._store = Store()
        self._api = HubApi(self._store, accounts, lfs)
        self._server = _Listener(("127.0.0.1", 0), type("HubHandler", (_Handler,), {"hub": self}))
        self._api.endpoint = self.endpoint
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def lfs(self) -> bool:
        """Whether the files of weights are stored as LFS."""
        return self._api.lfs

    @lfs.setter
    def lfs(self, value: bool) -> None:
        self._api.lfs = value

    # -- the state, as a test sees it

    def exists(self, repo_id: str, kind: str = "model") -> bool:
        """Whether there is such a repository."""
        with self._lock:
            return (kind, repo_id) in self._store.repositories

    def tree(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """The content of every file at a revision."""
        with self._lock:
            return {path: blob.data for path, blob in self._find(repo_id, kind).find(revision).files.items()}

    def head(self, repo_id: str, revision: str = "main", kind: str = "model") -> str:
        """The oid of the commit that a revision names."""
        with self._lock:
            return self._find(repo_id, kind).find(revision).oid

    def history(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[Commit]:
        """The commits of a revision, the newest first."""
        with self._lock:
            return self._find(repo_id, kind).history(revision)

    def refs(self, repo_id: str, kind: str = "model") -> dict[str, str]:
        """The commit of each ref: `refs/heads/…`, `refs/tags/…` and `refs/pr/…`."""
        with self._lock:
            return dict(self._find(repo_id, kind).refs)

    def settings(self, repo_id: str, kind: str = "model") -> dict[str, Any]:
        """Whether a repository is private, and how it is gated."""
        with self._lock:
            repository = self._find(repo_id, kind)
            return {"private": repository.private, "gated": repository.gated}

    def stored_as_lfs(self, repo_id: str, revision: str = "main", kind: str = "model") -> set[str]:
        """The paths of the LFS files at a revision."""
        with self._lock:
            return {path for path, blob in self._find(repo_id, kind).find(revision).files.items() if blob.lfs}

    def grant_access(self, repo_id: str, user: str, kind: str = "model") -> None:
        """Let a user download from a gated repository."""
        with self._lock:
            self._find(repo_id, kind).granted.add(user)

    def put(self, repo_id: str, files: Mapping[str, bytes], revision: str = "main", title: str = "By hand") -> str:
        """Commit files as somebody else would, and tell the commit's oid."""
        with self._lock:
            repository = self._find(repo_id, "model")
            ref = repository.commit_ref(revision)
            parent = repository.find(ref)
            content = {**parent.files, **{path: Blob(data) for path, data in files.items()}}
            return repository.add_commit(ref, parent, content, "somebody", title).oid

    def snapshot(self) -> Any:
        """Everything that the Hub holds, to come back to."""
        with self._lock:
            return copy.deepcopy(self._store.repositories)

    def restore(self, snapshot: Any) -> None:
        """Be as at the snapshot: no faults, no recorded requests."""
        with self._lock:
            self._store.repositories = copy.deepcopy(snapshot)
            self.requests.clear()
            self.clear_faults()

    def _find(self, repo_id: str, kind: str) -> Repository:
        return self._store.repositories[kind, repo_id]

    # -- faults

    def fail(self, at: int, kind: FaultKind, *, times: int | None = 1, delay: float = 1.0) -> None:
        """Let the request number `at` from now (0 is the next) fail, and those after it up to `times`."""
        self.fail_where(lambda record: True, kind, at=at, times=times, delay=delay)

    def fail_where(
        self, predicate: RequestPredicate, kind: FaultKind, *, at: int = 0, times: int | None = 1, delay: float = 1.0
    ) -> None:
        """Let the requests fail for which the predicate holds, from number `at` among them.

        Each fault counts for itself, also the requests that another one hits; of several the first added is felt.

        Args:
            predicate: Which requests count.
            kind: "500" answers 500 and does nothing; "500_after" does what was asked, then answers 500; "reset" and
                "reset_after" are the same with a reset connection in place of an answer; "slow" answers after `delay`
                seconds; "429" asks the client to come back; "truncate" does what was asked and sends half an answer;
                "corrupt" flips a bit in the middle of the file that is sent.
            at: How many such requests pass before.
            times: How many fail; None for all of them.
            delay: The seconds of "slow".
        """
        with self._lock:
            self._faults.append(Fault(kind, predicate, at, times, delay))

    def when(
        self, predicate: RequestPredicate, action: Callable[[], object], *, at: int = 0, after: bool = False
    ) -> None:
        """Do something once, before the request number `at` of those for which the predicate holds is acted on.

        Args:
            predicate: Which requests count.
            action: What to do.
            at: How many such requests pass before.
            after: Do it when the request has been acted on, before it is answered.
        """
        with self._lock:
            self._moments.append(Moment(predicate, at, action, after))

    def clear_faults(self) -> None:
        """Be well again."""
        with self._lock:
            self._faults.clear()
            self._moments.clear()

    def settle(self) -> None:
        """Wait until nothing is being answered: a killed client leaves requests behind."""
        time.sleep(0.05)
        while self._busy:
            time.sleep(0.01)

    # -- what the handler calls

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count a request as being answered."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def admit(self, request: Request) -> tuple[RequestRecord, Fault | None]:
        """Record a request and choose the fault that hits it, if any."""
        record = RequestRecord(request.method, unquote(request.path), request.query, "Authorization" in request.headers)
        if request.path in UNCOUNTED_PATHS:
            return record, None
        with self._lock:
            self.requests.append(record)
            hitting = [fault for fault in self._faults if fault.hits(record)]  # each counts the request
            fault = hitting[0] if hitting else None
            record.fault = fault.kind if fault else None
        return record, fault

    def come(self, record: RequestRecord) -> list[Moment]:
        """What is to be done at this request."""
        with self._lock:
            found = [moment for moment in self._moments if moment.matches(record)]
            due = [moment for moment in found if moment.skip == 0]
            for moment in found:
                moment.skip -= 1
            return due

    def act(self, request: Request) -> Response:
        """Do what is asked: one request at a time."""
        with self._lock:
            try:
                return self._api.answer(request)
            except Exception:
                return refusal(HubError(500, "The test Hub is broken", trace=traceback.format_exc()))


class _Listener(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed leaves its connection open: not worth a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer

    def handle_any(self) -> None:
        request = self._read_request()
        with self.hub.working():
            self._handle(request)

    def _handle(self, request: Request) -> None:
        record, fault = self.hub.admit(request)
        kind = fault.kind if fault else None
        moments = self.hub.come(record)
        _pass(moments, after=False)
        if kind == "reset":
            return self._reset()
        if fault and kind == "slow":
            time.sleep(fault.delay)
        response = self.hub.act(request) if kind not in ("500", "429") else _BROKEN
        _pass(moments, after=True)
        if kind == "reset_after":
            return self._reset()
        if kind == "429":
            response = Response(429, {"error": "Too many requests"}, {"Retry-After": "0"})
        elif kind == "500_after":
            response = _BROKEN
        elif kind == "corrupt":
            response = _corrupted(response)
        record.status = response.status
        with contextlib.suppress(ConnectionError):  # the client may have been killed
            self._send(response, truncated=kind == "truncate")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `HubServer.requests` has it all."""

    def _read_request(self) -> Request:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(iter(self._read_chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        headers = {name.title(): value for name, value in self.headers.items()}
        return Request(self.command, url.path, parse_qs(url.query), headers, body)

    def _read_chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def _send(self, response: Response, truncated: bool) -> None:
        body = response.body
        self.send_response(response.status)
        is_file = isinstance(response.content, bytes)
        self.send_header("Content-Type", "application/octet-stream" if is_file else "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if truncated else body)
        self.close_connection = self.close_connection or truncated

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST in place of FIN
        os.close(self.connection.detach())


_BROKEN = refusal(HubError(500, "Internal Error - We're working hard to fix this as soon as possible!"))


def _pass(moments: list[Moment], after: bool) -> None:
    for moment in moments:
        if moment.after == after:
            moment.action()


def _corrupted(response: Response) -> Response:
    """The same file with one bit flipped."""
    assert isinstance(response.content, bytes), "only files can be corrupted"
    data = bytearray(response.content)
    data[len(data) // 2] ^= 1
    return replace(response, content=bytes(data))


# -- the client, in a process of its own


def hub_environment(
    hub: HubServer, folder: Path, *, token: str | None = OWNER_TOKEN, lfs: bool | None = None
) -> dict[str, str]:
    """The environment of a client of the test Hub: this process's, without what it says of the real one.

    Args:
        hub: The Hub.
        folder: Where the client keeps its cache.
        token: The client's token, if it has one.
        lfs: Whether the client uploads by LFS and not by Xet; as the Hub stores by default. A client with Xet uploads
            folders by another path (several commits, each retried), which the Hub serves if it stores no LFS.
    """
    unwanted = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) and not name.lower().endswith("_proxy")
    }
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1" if (hub.lfs if lfs is None else lfs) else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return environment | ({"HF_TOKEN": token} if token else {})


def run_python(
    code: str, environment: Mapping[str, str], *, quick_retries: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a snippet with the client in a fresh process; its output is captured, its failure is for the caller to judge.

    Args:
        code: The snippet.
        environment: From `hub_environment`.
        quick_retries: Whether the client waits hardly at all between its retries.
        timeout: The seconds after which the process is killed.
    """
    command = [sys.executable, "-c", (QUICK_RETRIES if quick_retries else "") + code]
    return subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=timeout, check=False)


def run_module(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` like `run_python`, with the same options."""
    start = f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    code = f"import runpy, sys\nsys.argv[1:] = {list(arguments)!r}\n{start}"
    return run_python(code, environment, **options)
