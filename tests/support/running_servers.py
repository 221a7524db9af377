"""Servers on real sockets for tests: the application in a thread, and small fakes of other programs."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from hf_reward.scoring.serving.server import configure
from hf_reward.scoring.serving.settings import ServerSettings


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(scorer: Any, **settings: Any) -> Iterator[str]:
    """Our application, served by uvicorn in a thread; gives its address."""
    name = None if isinstance(scorer, dict) else "tiny"
    chosen = ServerSettings(served_model_name=name, port=free_port(), **settings)
    server = uvicorn.Server(configure(scorer, chosen))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{chosen.port}"
    finally:
        server.should_exit = True
        thread.join(30)


PROGRAM = """
import sys
import torch
torch.set_num_threads(1)
from hf_reward.scoring.serving.server import serve
from hf_reward.scoring.serving.settings import ServerSettings
models, settings = map(eval, sys.argv[1:])
serve(models, ServerSettings(device="cpu", **settings))
"""


@contextmanager
def process(model: Any, **settings: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server's process for a folder, that of a scorer, or folders by name, and its address."""
    settings = {"port": free_port(), **settings}
    models = model if isinstance(model, dict) else str(model) if isinstance(model, Path) else model.name
    command = [sys.executable, "-c", PROGRAM, repr(models), repr(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{settings['port']}"
    try:
        end = time.monotonic() + 900  # it loads torch, which takes minutes on a busy machine
        while not _is_up(url):
            assert server.poll() is None, server.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.05)
        yield server, url
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate()


def _is_up(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


Answer = Callable[[str, Any], Any]
"""Path and body (None for GET) -> JSON, or a status to refuse with, or bytes to send as they are."""


@contextmanager
def fake(answer: Answer) -> Iterator[str]:
    """A server that answers what a function says; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            found = answer(self.path, body)
            status = found if isinstance(found, int) else 200
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # simultaneous connections beyond it wait a second

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
