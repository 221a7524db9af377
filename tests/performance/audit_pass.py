"""Tokens and processor time of the audit's scoring pass, for this code and that of another checkout.

    python tests/performance/audit_pass.py                          # needs the model of `make quickstart`
    python tests/performance/audit_pass.py --before ../old --rounds 2

The model is SmolLM2-135M with its first layers only and a random head; the rows are the demonstration test data. Each
measurement is a process with one thread. `tokens given` is the sum of the lengths of all different sequences
that the audit scores, `computed` the number of tokens through the backbone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from typing import Any

from machine import core_count, cpu_name
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
DATA = ROOT / "hf_reward" / "data" / "demonstration" / "test.jsonl"


def main() -> None:
    """Measure both versions in turn and print a table."""
    parser = ArgumentParser(description="The audit's scoring pass.")
    parser.add_argument("--before", type=Path, help="checkout of another version")
    parser.add_argument("--rows", type=int, default=60, help="rows of the audit")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    versions = {"before": options.before, "now": ROOT} if options.before else {"now": ROOT}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "build", folder, str(options.layers)], check=True)
        for _ in range(options.rounds):
            for name, checkout in versions.items():
                environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, __file__, "audit", folder, str(options.rows)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    table = Table(
        title=f"Audit of {options.rows} rows, {options.layers} layers",
        caption=f"one thread of {core_count()} cores of {cpu_name()}; medians of {options.rounds} rounds",
    )
    for heading in ("", "sequences", "tokens given", "computed", "scoring, CPU s", "whole audit, CPU s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, rounds in found.items():
        first = rounds[0]
        counts = [f"{first[key]:,}" for key in ("sequences", "given", "computed")]
        table.add_row(name, *counts, *(f"{median(each[key] for each in rounds):.1f}" for key in ("scoring", "audit")))
    Console(width=100).print(table)


def build(folder: str, layers: int) -> None:
    """Save the model."""
    import torch
    from transformers import AutoTokenizer

    sys.path.append(str(ROOT / "recipes" / "studies"))
    from study_runs import base_model

    model = base_model(str(MODEL), layers)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight, std=0.02)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)


def audit(folder: str, count: int) -> None:
    """Audit the model and print the counts and times as JSON."""
    from hf_reward import RewardScorer
    from hf_reward.evaluation.audit.running import run_audit
    from hf_reward.modeling.reward_head import unwrap_model
    from hf_reward.scoring.sequence_scorer import SequenceScorer

    numbers = dict.fromkeys(("sequences", "given", "computed", "scoring"), 0.0)
    scorer = RewardScorer.from_pretrained(folder, device="cpu")

    def count_tokens(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        numbers["computed"] += (options["input_ids"] if "input_ids" in options else arguments[0]).numel()

    unwrap_model(scorer.model).base_model.register_forward_pre_hook(count_tokens, with_kwargs=True)
    original = SequenceScorer.score

    def timed(self: SequenceScorer, sequences: Any, *arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        result = original(self, sequences, *arguments, **options)
        numbers["scoring"] += time.process_time() - start
        numbers["sequences"] += len(sequences.input_ids)
        numbers["given"] += sum(map(len, sequences.input_ids))
        return result

    SequenceScorer.score = timed  # type: ignore[method-assign]
    lines = DATA.read_text(encoding="utf-8").splitlines()[:count]
    rows = [{key: json.loads(line)[key] for key in ("prompt", "chosen", "rejected")} for line in lines]
    start = time.process_time()
    run_audit(scorer, rows)
    whole = {name: value if name == "scoring" else int(value) for name, value in numbers.items()}
    print(json.dumps(whole | {"audit": time.process_time() - start}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"]:
        build(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["audit"]:
        audit(sys.argv[2], int(sys.argv[3]))
    else:
        main()
