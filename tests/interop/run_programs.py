"""Score the probes of saved models with downstream programs, and compare the rewards with the recorded ones.

    python tests/interop/run_programs.py                 # all programs; `make interop`
    python tests/interop/run_programs.py vllm openrlhf   # those of some environments
    python tests/interop/run_programs.py --reuse         # compare the answers of an earlier run again

Each program runs in an environment of its own (`environments.py`). If every outcome is the expected one (`cases.py`),
the results replace those in `hf_reward/publishing/interop_results.json`, and the tables of the documentation are
written again. Otherwise the exit code is 1 and nothing is written.
"""

import os
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
os.environ["HF_HUB_OFFLINE"] = "1"

from cases import CASES, Program
from environments import python_of
from model_folders import make_folders
from probing import largest_difference, recorded_rewards, run_program
from program_tables import run_table, write_tables
from rich.console import Console

from hf_reward.publishing.program_results import (
    OTHER_REWARD,
    READ,
    REFUSED,
    RUN,
    SAME_REWARD,
    TOLERANCE,
    ProgramResult,
    program_results,
    write_results,
)

CONSOLE = Console(soft_wrap=True, highlight=False)


def main(arguments: list[str]) -> int:
    """Run the programs and return the exit code."""
    known = sorted({case.environment for case in CASES})
    parser = ArgumentParser(description="Score saved models with downstream programs.")
    parser.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help=f"{', '.join(known)}; by default all")
    parser.add_argument("--reuse", action="store_true", help="use the answers of an earlier run to the same requests")
    options = parser.parse_args(arguments)
    if unknown := set(options.environments) - set(known):
        parser.error(f"environments are {', '.join(known)}, not {', '.join(sorted(unknown))}")
    cases = [case for case in CASES if case.environment in (options.environments or known)]
    pythons = {name: python_of(name) for name in dict.fromkeys(case.environment for case in cases)}
    folders = make_folders()
    found: list[ProgramResult] = []
    unexpected: list[str] = []
    for case in cases:
        for model in case.models:
            for expected, result in _results(case, model, pythons[case.environment], folders, reuse=options.reuse):
                found.append(result)
                line = _line(result)
                CONSOLE.print(line)
                if result.outcome != expected:
                    unexpected.append(f"{line}, but {expected!r} was expected")
    CONSOLE.print("\n".join(run_table(found)))
    if unexpected:
        CONSOLE.print("Unexpected:", *unexpected, sep="\n")
        return 1
    _replace(found, {case.name for case in cases})
    write_tables()
    return 0


def _line(result: ProgramResult) -> str:
    size = f" ({result.difference:.2e})" if result.difference is not None else f" ({result.note})"
    what = f"{result.program} {result.version}, {result.way}, {result.dtype}, {result.model}"
    return f"{what}: {result.outcome}{size}"


def _results(
    case: Program, model: str, python: Path, folders: dict[str, Path], *, reuse: bool
) -> Iterator[tuple[str, ProgramResult]]:
    """Run a program on one model; yield the expected outcome and the result of each way."""
    place = case.models.index(model)
    ways = [(way, expected) for way in case.ways if (expected := way.expected[place]) is not None]
    if not ways:
        return
    folder, policy = folders[model], str(folders["policy"])
    keys = [way.key for way, _ in ways]
    answer = run_program(python, case.script, folder, dtype=case.dtype, ways=keys, policy=policy, reuse=reuse)
    for way, expected in ways:
        rewards = answer["rewards"].get(way.key)
        difference = None if rewards is None else largest_difference(recorded_rewards(folder), rewards)
        outcome = REFUSED if difference is None else SAME_REWARD if difference <= TOLERANCE else OTHER_REWARD
        yield (
            expected,
            ProgramResult(
                program=case.name,
                version=answer["version"],
                status=RUN,
                date=date.today().isoformat(),
                machine=f"CPU, {platform.machine()}",
                dtype=case.dtype,
                way=way.label or way.key,
                model=model,
                outcome=outcome,
                difference=None if difference is None else float(f"{difference:.3g}"),
                note=answer["errors"].get(way.key, case.note).replace(str(folder), "FOLDER"),
                instead=way.instead if outcome == OTHER_REWARD else "",
            ),
        )


def _replace(found: list[ProgramResult], programs: set[str]) -> None:
    """Replace the results of programs, in the order of `CASES`. What was only read stays."""
    order = [case.name for case in CASES]
    kept = [each for each in program_results() if each.status != READ and each.program not in programs]
    results = sorted(
        [*(each for each in kept if each.program in order), *found], key=lambda each: order.index(each.program)
    )
    write_results([*results, *(each for each in program_results() if each.status == READ)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
