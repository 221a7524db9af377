"""The tutorials run as they are written: their blocks in order, in one folder, without the Hub."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tutorials,  # one to three minutes each on two cores
    pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs the model of `make quickstart`"),
]


def _run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the bash and Python blocks of a tutorial. Its Python blocks share one session."""
    text = (TUTORIALS / page).read_text(encoding="utf-8")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    scope: dict[str, Any] = {"__name__": page}
    monkeypatch.chdir(folder)
    for language, code in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(code, page, "exec"), scope)
        else:
            environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return scope


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorials")
    (folder / "models").mkdir()
    (folder / "models" / SMOLLM2.name).symlink_to(SMOLLM2)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    """The first tutorial, whose files the other two use."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _run("train.md", folder, monkeypatch)


def test_train(trained: dict[str, Any], folder: Path) -> None:
    assert trained["results"]["eval_num_pairs"] == 209
    assert trained["results"]["eval_accuracy_ci_low"] < 0.5 < trained["results"]["eval_accuracy_ci_high"]
    assert (folder / "runs" / "first" / "training_curves.png").is_file()


@pytest.mark.usefixtures("trained")
def test_length_bias(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = _run("length-bias.md", folder, monkeypatch)
    before, after = (scope["effects"][name] for name in ("biased", "corrected"))
    assert before["verdict"] == "biased"
    assert after["estimate"] < before["estimate"]


@pytest.mark.usefixtures("trained")
@pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL")
def test_best_of_n_and_grpo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = _run("best-of-n-and-grpo.md", folder, monkeypatch)
    assert scope["ranking"].best == scope["responses"][scope["ranking"].order[0]]
    assert len(scope["rewards"]) == 2
