"""Results of `make interop`: whether other programs gave the rewards of saved models (`interop_results.json`).

The compatibility tables in the documentation and in model cards, and the evidence of each verdict, are generated from
this file.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

RESULTS_PATH = Path(__file__).with_name("interop_results.json")
RUN, READ, NOT_RUN = "run", "source read", "not run"
SAME_REWARD, OTHER_REWARD, REFUSED = "same", "different", "refused"
TOLERANCE = 1e-4
"""Rewards of two programs are the same in float32 if they differ by at most this."""
LLAMA_MODELS = ("quick start", "adapter", "BOS")
"""Models of the suite whose architecture is Llama."""


@dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """One way in which a program scored a saved model, or the part of its source that was read."""

    program: str
    version: str
    status: str
    """`RUN`, `READ` or `NOT_RUN`."""
    date: str = ""
    """Day of the run."""
    machine: str = ""
    dtype: str = ""
    way: str = ""
    """Endpoint or function, and its input."""
    model: str = ""
    """`quick start` (SmolLM2, 135M parameters), its `adapter`, `BOS` (a tiny Llama whose template writes BOS), or the
    architecture of a tiny vision-language model."""
    outcome: str = ""
    """`SAME_REWARD`, `OTHER_REWARD` or `REFUSED`, if it was run."""
    difference: float | None = None
    """Largest absolute difference from the recorded rewards of the eight probes."""
    note: str = ""
    """The error, the reason why it was not run, or how the run differs from the usual use."""
    instead: str = ""
    """What to use instead, if the rewards differ."""


@cache
def program_results() -> tuple[ProgramResult, ...]:
    """Return the results of `interop_results.json`."""
    return tuple(ProgramResult(**row) for row in json.loads(RESULTS_PATH.read_text(encoding="utf-8")))


def write_results(results: Iterable[ProgramResult]) -> None:
    """Write results as JSON, one per line, without empty fields.

    Args:
        results: All results.
    """
    rows = [{name: value for name, value in asdict(each).items() if value not in ("", None)} for each in results]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    RESULTS_PATH.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    program_results.cache_clear()


def evidence_of(program: str, models: Collection[str]) -> str:
    """Return the evidence for a verdict on a program: a run with its largest difference, or the source that was read.

    Args:
        program: Name of the program.
        models: Models of the suite with this architecture.

    Returns:
        One line; empty for a program without results.
    """
    rows = [each for each in program_results() if each.program == program]
    if not any(each.status == RUN for each in rows):
        rows.sort(key=lambda each: each.status != READ)
        return "".join(f"{each.status}: {each.version}" for each in rows[:1])
    ran = [each for each in rows if each.status == RUN and each.model in models]
    if not ran:
        versions = {each.version for each in rows if each.status == RUN and each.model in LLAMA_MODELS}
        return f"source read; run with Llama ({', '.join(sorted(versions))})"
    versions = ", ".join(sorted({each.version for each in ran}))
    same = [each.difference for each in ran if each.outcome == SAME_REWARD and each.difference is not None]
    largest = f": up to {max(same):.0e}" if same else ""
    return f"run ({versions}, {ran[0].machine}){largest}"
