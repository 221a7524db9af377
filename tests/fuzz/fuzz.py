"""Fuzz every entry point for untrusted data.

`python tests/fuzz/fuzz.py --minutes 3` gives each target three minutes of CPU time in a process of its own, with
coverage guidance (atheris) where that is installed and random cases (hypothesis) otherwise. Every error that is not
documented is written to the folder `--out` with the case that caused it; the exit code is 1 if there was any.

Needs hypothesis and the extra `serve`; `pip install atheris` for coverage guidance (Linux, Python 3.11 to 3.13).
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

NAMES = (
    *("rows", "ratings", "preparation", "settings", "tables", "sources", "scores", "probe_data", "manifest"),
    *("server", "importers", "records"),
)
_LONGEST_CASE = 20.0
"""CPU seconds after which a case counts as one that does not end."""
_MEMORY = 16 * 2**30
"""Address space of a process: a case that asks for more is a finding, not the end of the machine."""


class Findings:
    """Counts cases, keeps errors, and ends the process when its time is over."""

    def __init__(self, name: str, engine: str, seconds: float, out: Path) -> None:
        self.name, self.engine, self.seconds, self.out = name, engine, seconds, out
        self.cases, self.kinds = 0, set[str]()
        self.last = out / f"{name}.last"
        self.began = time.process_time()
        self.reported = self.began

    def begin(self, case: Any) -> None:
        """Count a case, and write it down: a crash of native code leaves nothing else."""
        self.cases += 1
        self.last.write_text(repr(case), encoding="utf-8", errors="backslashreplace")

    def keep(self, error: BaseException, case: Any) -> None:
        """Write an error of a new kind: the same type from the same line is written once."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [each for each in frames if "hf_reward" in each.filename] or frames
        kind = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        if kind in self.kinds:
            return
        self.kinds.add(kind)
        text = f"{kind}\n\n{case!r}\n\n{''.join(traceback.format_exception(error))}"
        path = self.out / f"{self.name}-{len(self.kinds)}.txt"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")

    def report(self) -> None:
        """Write the numbers so far."""
        self.reported = time.process_time()
        numbers = {
            "target": self.name,
            "engine": self.engine,
            "cases": self.cases,
            "cpu_minutes": (self.reported - self.began) / 60,
            "findings": sorted(self.kinds),
        }
        (self.out / f"{self.name}.json").write_text(json.dumps(numbers), encoding="utf-8")

    def is_over(self) -> bool:
        """Whether the time is used up; the numbers are written now and then."""
        now = time.process_time()
        if now - self.reported > 5:
            self.report()
        return now - self.began > self.seconds


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError(f"a case took more than {_LONGEST_CASE:g} s")


def work(name: str, engine: str, seconds: float, out: Path) -> None:
    """Fuzz one target in this process.

    Args:
        name: One of `NAMES`.
        engine: `atheris` or `hypothesis`.
        seconds: CPU time.
        out: Where findings and numbers go.
    """
    import resource

    from hypothesis import HealthCheck, Phase, given, seed, settings

    logging.getLogger("hf_reward").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGVTALRM, _too_long)
    with _instrumented(engine):
        from fuzz_models import MODEL_TARGETS
        from fuzz_targets import TARGETS, try_case
    target = {**TARGETS, **MODEL_TARGETS}[name]
    folder = tempfile.TemporaryDirectory()
    attempt = target.make(Path(folder.name))
    findings = Findings(name, engine, seconds, out)

    checks: Any = list(HealthCheck)

    @given(case=target.cases)
    @settings(
        database=None,
        deadline=None,
        max_examples=500,
        phases=[Phase.generate],
        suppress_health_check=checks,
    )
    def one(case: Any) -> None:
        if findings.is_over():
            return
        findings.begin(case)
        signal.setitimer(signal.ITIMER_VIRTUAL, _LONGEST_CASE)
        try:
            try_case(target, attempt, case)
        except BaseException as error:
            findings.keep(error, case)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    if engine == "atheris":
        fuzzed: Any = one
        _guided(fuzzed.hypothesis.fuzz_one_input, findings, Path(folder.name))
    number = 0
    while not findings.is_over():
        seed(number)(one)()
        number += 1
    _end(findings, folder)


def _guided(fuzz_one_input: Any, findings: Findings, folder: Path) -> None:
    """Let libFuzzer choose the bytes from which hypothesis makes a case."""
    atheris = importlib.import_module("atheris")
    corpus = folder / "corpus"
    corpus.mkdir()
    source = random.Random(0)
    for number in range(300):
        (corpus / f"{number}").write_bytes(source.randbytes(source.choice((64, 512, 2048, 4096))))

    def one_input(data: bytes) -> None:
        if findings.is_over():
            _end(findings, None)
        fuzz_one_input(data)

    words = ["-max_len=4096", "-len_control=0", "-rss_limit_mb=0", "-timeout=3600", f"-artifact_prefix={findings.out}/"]
    atheris.Setup([sys.argv[0], *words, str(corpus)], one_input)
    atheris.Fuzz()


def _end(findings: Findings, folder: Any) -> None:
    """End at once: libFuzzer gives nothing back, and its own way out would report a failure."""
    findings.report()
    if folder is not None:
        folder.cleanup()
    sys.stdout.flush()
    os._exit(0)


def _instrumented(engine: str) -> Any:
    if engine != "atheris":
        return contextlib.nullcontext()
    return importlib.import_module("atheris").instrument_imports(include=["hf_reward"])


def run_targets(names: list[str], engine: str, seconds: float, out: Path) -> list[dict[str, Any]]:
    """Fuzz targets one after the other, each in a process of its own.

    Args:
        names: Which.
        engine: `atheris` or `hypothesis`.
        seconds: CPU time of each.
        out: Where findings and numbers go.

    Returns:
        The numbers of each target.
    """
    found = []
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    for name in names:
        words = ["--worker", name, "--engine", engine, "--minutes", str(seconds / 60), "--out", str(out)]
        with tempfile.TemporaryDirectory() as scratch, (out / f"{name}.log").open("w") as log:
            folders = {"TMPDIR": scratch, "HF_HOME": scratch, "HF_DATASETS_CACHE": f"{scratch}/datasets"}
            ended = subprocess.run(
                [sys.executable, __file__, *words], env={**os.environ, **offline, **folders}, stdout=log, stderr=log
            )
        path = out / f"{name}.json"
        blank = {"target": name, "engine": engine, "cases": 0, "cpu_minutes": 0.0, "findings": []}
        numbers = json.loads(path.read_text()) if path.is_file() else blank
        if ended.returncode:
            numbers["findings"].append(f"the process ended with {ended.returncode}: see {name}.last and {name}.log")
        found.append(numbers)
    return found


def main(words: list[str]) -> int:
    """Fuzz, print the table, and say whether anything was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz every entry point for untrusted data.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"Out of {', '.join(NAMES)}; all unless named.")
    parser.add_argument("--minutes", type=float, default=3.0, help="CPU minutes of each target.")
    parser.add_argument("--engine", choices=["auto", "atheris", "hypothesis"], default="auto")
    parser.add_argument("--out", type=Path, default=Path("outputs/fuzz"), help="Folder for findings and numbers.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    unknown = sorted(set(given.targets) - set(NAMES))
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}. There are {', '.join(NAMES)}.")
    given.out.mkdir(parents=True, exist_ok=True)
    engine = given.engine
    if engine == "auto":
        engine = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    if given.worker:
        work(given.worker, engine, given.minutes * 60, given.out)
    for path in given.out.iterdir():
        if path.suffix in (".json", ".txt", ".log", ".last") and path.stem.split("-")[0] in NAMES:
            path.unlink()
    return show(run_targets(given.targets or list(NAMES), engine, given.minutes * 60, given.out), given.out)


def show(found: list[dict[str, Any]], out: Path) -> int:
    """Print the table.

    Args:
        found: The numbers of each target.
        out: Where the findings are.

    Returns:
        1 if there is a finding, else 0.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "engine", "cases", "CPU minutes", "findings")
    for each in found:
        table.add_row(
            each["target"],
            each["engine"],
            f"{each['cases']:,}",
            f"{each['cpu_minutes']:.1f}",
            "\n".join(each["findings"]) or "0",
        )
    number = sum(len(each["findings"]) for each in found)
    minutes, cases = sum(each["cpu_minutes"] for each in found), sum(each["cases"] for each in found)
    console = Console(width=120)
    console.print(table)
    console.print(f"{cases:,} cases in {minutes:.1f} CPU minutes, {number} findings" + (f" in {out}" if number else ""))
    return 1 if number else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
