"""Stock transformers in forked processes that have already imported it: 0.5 seconds each instead of four.

`verify` starts `stock_scoring.py` as a program that never imports hf_reward. In the tests, a server that has imported
torch, transformers and PEFT, and nothing of ours, forks a child for each start; the child runs the same file.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_SERVER = """
import json, os, runpy, sys, tempfile, traceback
import torch, transformers, transformers.pipelines, peft, safetensors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
torch.set_num_threads(1)

def run(script, words):
    sys.argv = [script, *words]
    assert not any(name.split(".")[0] == "hf_reward" for name in sys.modules)
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    script, words, folder, environment = json.loads(line)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            os.environ.update(environment)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = run(script, words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        print(json.dumps([code, out.read(), err.read()]), flush=True)
"""


class ForkedStock:
    """In place of the module `subprocess` in `hf_reward.publishing.verify`."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` gives for `python -P stock_scoring.py ...`."""
        assert list(command[:2]) == [sys.executable, "-P"]
        if self._server is None:
            start = [sys.executable, "-P", "-c", _SERVER]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._server = subprocess.Popen(start, **pipes, text=True, env=env)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([command[2], command[3:], os.getcwd(), dict(env)]) + "\n")
        self._server.stdin.flush()
        code, out, err = json.loads(self._server.stdout.readline())
        return subprocess.CompletedProcess(command, code, out, err)

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
