"""A persistent client of the test Hub: one process that imports once and then runs commands.

with Client(hub_environment(hub, tmp_path)) as client:
    done = client.run("push", str(folder), "user/model")
    assert done.code == 0, done.error
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hub_server import QUICK_RETRIES
from paths import ROOT

LOOP = """
import contextlib, io, json, os, sys, traceback
import torch
from types import SimpleNamespace
from hf_reward.publishing import export, push, repository, staged_files, verify
from hf_reward.publishing.card.render import _template
from stock_in_process import score_in_process
from hf_reward import cli

torch.set_num_threads(1)
verify.run_stock_scoring = score_in_process
answers, requests = os.fdopen(os.dup(1), "w"), sys.stdin
os.dup2(2, 1)
checked = []

def cheap(folder, **options):
    checked.append(str(folder))
    return SimpleNamespace(equal=True)

def run(asked):
    if not asked["verified"]:
        for module in (push, repository, staged_files, export):
            module.verify_checkpoint = cheap
    os.environ.update(asked["environment"])
    sys.argv, code, unexpected = ["hf-reward", *asked["arguments"]], 0, None
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException as exception:
            code, unexpected = 99, "".join(traceback.format_exception(exception))
    answer = {"code": code, "out": out.getvalue(), "error": error.getvalue()}
    print(json.dumps({**answer, "unexpected": unexpected, "checked": len(checked)}), file=answers, flush=True)

# What a first command imports and compiles, once for all forks: typer's parser, the card's template.
sys.argv = ["hf-reward", "verify", "/absent"]
with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
    cli.main()
_template()

for line in requests:
    process = os.fork()
    if process == 0:
        print(os.getpid(), file=answers, flush=True)
        run(json.loads(line))
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if status:
        print(json.dumps({"code": -status, "out": "", "error": ""}), file=answers, flush=True)
"""


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    error: str
    unexpected: str | None = None
    """Traceback of an error that the command line does not explain."""
    checked: int = 0
    """How often the cheap check stood in for the real one."""

    @property
    def report(self) -> dict[str, Any]:
        """What `--json` printed."""
        return json.loads(self.out)


class Client:
    """Runs `hf-reward` commands one after the other, each in a fork of one child process.

    Args:
        environment: From `hub_environment`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.running = 0
        self.environment = {
            **environment,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
        }

    def __enter__(self) -> Self:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", QUICK_RETRIES + LOOP]
        self.process = subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL, **pipes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    def run(self, *arguments: object, verified: bool = False, timeout: float = 600, **environment: str) -> Outcome:
        """Run one command; without `verified` a push takes the rewards of a folder for right."""
        self.send(*arguments, verified=verified, **environment)
        return self.answer(timeout)

    def send(self, *arguments: object, verified: bool = False, **environment: str) -> None:
        """Start one command."""
        assert self.process.stdin is not None
        words = [str(argument) for argument in arguments]
        asked = {"arguments": words, "verified": verified, "environment": environment}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        self._line()

    def answer(self, timeout: float = 600) -> Outcome:
        """Wait for what was started; a killed one has the code -9."""
        watchdog = threading.Timer(timeout, self.process.kill)
        watchdog.start()
        while "code" not in (line := self._line()):
            pass
        watchdog.cancel()
        return Outcome(**json.loads(line))

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client died with {self.process.wait()}"
        if "code" not in line:
            self.running = int(line)
        return line

    def kill(self) -> None:
        """End the running command as `kill -9` does."""
        os.kill(self.running, signal.SIGKILL)
