"""Check and measure hf_reward on a machine with an NVIDIA GPU, without a network: `make gpu`.

    python tests/performance/gpu.py --minutes 9 --out gpu
    python tests/performance/gpu.py --site wheels --stages kernels fit            # packages of `pip install --target`
    python tests/performance/gpu.py --device cpu --geometry tiny --minutes 6      # tests this script without a GPU

Each stage of `stage_table` runs in a separate process. A stage gets its share of the remaining time, so the time that
it does not use goes to the stages after it. After each stage, STAGE.json is written to the output folder, with

    status    passed, failed, timed out or skipped
    message   the error, or the reason why the stage was skipped
    seconds, limit_seconds
    result    of the stage, see `gpu_stages.py`; measurements before an error or the time limit are kept

together with STAGE.log, the output of the process, and report.md, all results so far as Markdown. A stage that fails
does not stop the others. The exit code is 1 if one failed or timed out.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geometries import GEOMETRIES
from gpu_report import write_report

ROOT = Path(__file__).parents[2]
DEFAULT_GEOMETRIES = ("qwen2.5-0.5b", "qwen2.5-1.5b", "llama-3.1-8b")


@dataclass(frozen=True)
class Stage:
    """A part of the run."""

    name: str
    share: float
    """Time limit relative to those of the stages after it."""
    command: tuple[str, ...]
    """Arguments of the Python interpreter. The file for the result is added."""


def stage_table(geometries: Sequence[str]) -> list[Stage]:
    """Return the stages in order.

    Args:
        geometries: Model sizes for training; the other stages use the first one.
    """
    script = str(Path(__file__).with_name("gpu_stages.py"))

    def stage(kind: str, share: float, geometry: str = geometries[0], name: str | None = None) -> Stage:
        return Stage(name or kind, share, (script, kind, geometry))

    return [
        stage("kernels", 5),
        stage("cuda_tests", 8),
        stage("parity", 5),
        stage("quickstart", 8),
        *(stage("training", 14, each, f"training_{each}") for each in geometries),
        stage("scoring", 7),
        stage("fit", 16),
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the stages and exit with code 1 if one failed."""
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `run_stage` kills the processes of its stage
    options.out.mkdir(parents=True, exist_ok=True)
    environment = make_environment(options)
    script = str(Path(__file__).with_name("gpu_stages.py"))
    machine = Stage("machine", 1, (script, "machine", options.device))
    if (found := run_stage(machine, 300, options.out, environment))["status"] != "passed":
        raise SystemExit(f"The stages cannot run here: {found['message']}")
    end = time.monotonic() + 60 * options.minutes
    stages = stage_table(options.geometry)
    chosen = [stage for stage in stages if options.stages is None or stage.name in options.stages]
    raise SystemExit(run_all(chosen, end, options.out, environment))


def parse(argv: list[str] | None) -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description="Check and measure hf_reward on an NVIDIA GPU.")
    parser.add_argument("--minutes", type=float, default=9, help="time for all stages")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for results and report")
    parser.add_argument("--site", type=Path, help="folder of installed packages that take precedence")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--geometry", nargs="+", choices=list(GEOMETRIES), default=DEFAULT_GEOMETRIES, help="model sizes"
    )
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="run only these, and report all results in --out")
    options = parser.parse_args(argv)
    names = [stage.name for stage in stage_table(options.geometry)]
    if unknown := set(options.stages or ()) - set(names):
        parser.error(f"There is no stage {', '.join(sorted(unknown))}. The stages are {', '.join(names)}.")
    if options.site is not None and not options.site.is_dir():
        parser.error(f"--site must be a folder of installed packages, but {options.site} is not a folder.")
    options.out = options.out.resolve()
    return options


def make_environment(options: Namespace) -> dict[str, str]:
    """Return the environment of every stage: offline, with the folder of packages first."""
    tests = ROOT / "tests"
    folders = [options.site.resolve()] if options.site else []
    folders += [ROOT, tests / "performance", tests / "support", tests / "faults", ROOT / "recipes"]
    given = os.environ.get("PYTHONPATH")
    changed = {"PYTHONPATH": os.pathsep.join([*map(str, folders), *([given] if given else [])])}
    changed |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.device == "cpu":
        changed["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **changed}


def run_all(stages: list[Stage], end: float, out: Path, environment: dict[str, str]) -> int:
    """Run the stages one after the other.

    Args:
        stages: The stages.
        end: When the time ends, a reading of `time.monotonic`.
        out: Folder for results.
        environment: Environment of the processes.

    Returns:
        1 if a stage failed or timed out, else 0.
    """
    statuses = []
    for place, stage in enumerate(stages):
        left = max(end - time.monotonic(), 1.0)
        limit = left * stage.share / sum(each.share for each in stages[place:])
        print(f"{stage.name}: at most {limit:.0f} s", flush=True)
        found = run_stage(stage, limit, out, environment)
        print(f"  {found['status']} after {found['seconds']:.0f} s  {found['message']}", flush=True)
        statuses.append(found["status"])
        write_report(out)
    return int(any(status in ("failed", "timed out") for status in statuses))


def run_stage(stage: Stage, limit: float, out: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a stage in a process group of its own and write its record.

    Args:
        stage: The stage.
        limit: Time limit in seconds; then all its processes are killed.
        out: Folder for `STAGE.json` and `STAGE.log`.
        environment: Environment of the process.

    Returns:
        The record.
    """
    partial, log = out / f"{stage.name}.partial.json", out / f"{stage.name}.log"
    partial.unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as lines:
        command = [sys.executable, *stage.command, str(partial)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=lines, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
    record = {"stage": stage.name, **_outcome(code, limit, read_json(partial), log)}
    record |= {"seconds": time.monotonic() - start, "limit_seconds": limit}
    (out / f"{stage.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.unlink(missing_ok=True)
    return record


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the processes that a stage started and left, which would hold GPU memory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(code: int | None, limit: float, result: Any, log: Path) -> dict[str, Any]:
    if code is None:
        return {"status": "timed out", "message": f"not finished after {limit:.0f} s", "result": result}
    if code < 0:
        return {"status": "failed", "message": f"ended by signal {-code}", "result": result}
    if code > 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        return {"status": "failed", "message": lines[-1][:300], "result": result}
    if isinstance(result, dict) and "skipped" in result:
        return {"status": "skipped", "message": result["skipped"], "result": None}
    return {"status": "passed", "message": "", "result": result}


def read_json(path: Path) -> Any:
    """Return the content of a file, or None if it is missing or was being written when its process was killed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


if __name__ == "__main__":
    main()
