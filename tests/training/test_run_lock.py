"""Lock of an output folder: one run at a time, and the lock of a dead process is taken over."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hf_reward.training import run_lock as module
from hf_reward.training.run_lock import LOCK_FILE, require_held, run_lock

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from hf_reward.training import run_lock as module
module.LEASE_SECONDS, module.HEARTBEAT_SECONDS = {lease}, {heartbeat}
with module.run_lock(Path({folder!r})):
    print("held", flush=True)
    time.sleep(120)
"""
LEASE, HEARTBEAT = 2.0, 0.2


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", LEASE)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", HEARTBEAT)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock."""
    root = str(Path(__file__).parents[2])
    code = HOLDER.format(root=root, lease=LEASE, heartbeat=HEARTBEAT, folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def on_another_host(path: Path) -> None:
    """Change the lock so that its holder is on another machine, whose processes are not visible."""
    lines = ["host=elsewhere\n" if line.startswith("host=") else line for line in path.read_text().splitlines(True)]
    path.write_text("".join(lines))


def unchanged(path: Path) -> None:
    """Keep the lock of this machine."""


@pytest.mark.parametrize(("change", "name"), [(unchanged, ""), (on_another_host, "elsewhere")])
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, change: Callable[[Path], None], name):
    with held_elsewhere(tmp_path / "run") as first:
        change(tmp_path / "run" / LOCK_FILE)
        with (
            pytest.raises(RuntimeError, match=rf"process {first.pid} on {name}.*set another `output_dir`"),
            run_lock(tmp_path / "run"),
        ):
            pytest.fail("entered")
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / "run" / LOCK_FILE).exists()
        began = time.monotonic()
        with run_lock(tmp_path / "run"):
            waited = time.monotonic() - began
            # A dead process is recognised at once on this machine, and after the lease on another one.
            assert waited > LEASE - HEARTBEAT - 0.1 if name else waited < LEASE / 2
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_one_process_may_enter_again_and_other_folders_are_free(tmp_path):
    with run_lock(tmp_path / "run"), run_lock(tmp_path / "run"), run_lock(tmp_path / "other"):
        require_held(tmp_path / "run")
    assert not (tmp_path / "run" / LOCK_FILE).exists()
    require_held(tmp_path / "run")  # a lock that was never held cannot be lost


def wait_until_lost(folder: Path) -> None:
    end = time.monotonic() + 10
    while module._held[folder.resolve()].compromise is None:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_lost_lock_is_reacquired_unless_another_run_has_it(tmp_path, caplog):
    with run_lock(tmp_path):
        (tmp_path / LOCK_FILE).unlink()
        wait_until_lost(tmp_path)
        require_held(tmp_path)
        assert "was lost (marker-missing). Reacquiring it." in caplog.text
        assert (tmp_path / LOCK_FILE).exists()
        (tmp_path / LOCK_FILE).unlink()
        with held_elsewhere(tmp_path):
            wait_until_lost(tmp_path)
            with pytest.raises(RuntimeError, match="Another run"):
                require_held(tmp_path)
