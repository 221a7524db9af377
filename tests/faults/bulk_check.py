"""Check that bulk scoring survives kills and has bounded memory, on made-up rows with a tiny random model.

    python tests/faults/bulk_check.py kills                      # at least 20 kills for each kind of output
    python tests/faults/bulk_check.py kills --kills 50 --out jsonl --seed 1
    python tests/faults/bulk_check.py memory                     # 10,000, 100,000 and 1,000,000 rows
    python tests/faults/bulk_check.py memory --rows 10000 --kind parquet --json memory.json --png memory.png

`kills` scores a folder of two files in a separate process and ends it with SIGKILL, at a random time or when a certain
file appears: a temporary file of the manifest, a shard, its marker or the joined file, the joined file itself, or the
shards that are removed after it. The next process resumes. The files of a finished run are compared with those of an
uninterrupted run by SHA-256, and the next round starts.

`memory` scores tables of different sizes, each in a separate process, and prints its peak memory. `--json` writes
`machine`, `settings` and `results`.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WORDS = [
    "water",
    "boils",
    "at",
    "one",
    "hundred",
    "degrees",
    "and",
    "ice",
    "melts",
    "when",
    "the",
    "sun",
    "shines",
    "on",
]
_SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
    "num_labels": 1,
    "problem_type": "regression",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_OUTPUTS = {"jsonl": "scores.jsonl", "parquet": "scores.parquet", "folder": "scores"}


def main() -> None:
    """Parse the command line and run one check."""
    parser = ArgumentParser(description="Fault checks of bulk scoring.")
    commands = parser.add_subparsers(dest="command", required=True)
    kills = commands.add_parser("kills", help="kill and resume, then compare bytes")
    kills.add_argument("--kills", type=int, default=20, help="minimum for each kind of output")
    kills.add_argument("--out", nargs="+", choices=list(_OUTPUTS), default=list(_OUTPUTS), help="kinds of output")
    kills.add_argument("--rows", type=int, default=6_000, help="rows in each of two files")
    memory = commands.add_parser("memory", help="peak memory by number of rows")
    memory.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    memory.add_argument("--kind", choices=["jsonl", "parquet"], default="jsonl", help="format of input and output")
    memory.add_argument("--png", type=Path, help="write a figure of memory to this file")
    for command in (kills, memory):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--json", type=Path, help="write the results to this file")
    work = commands.add_parser("work", help="one process; used by the checks")
    for name in ("model", "data", "out", "rows_per_shard"):
        work.add_argument(name)
    options = parser.parse_args()
    run = {"kills": check_kills, "memory": check_memory, "work": work_once}
    run[options.command](options)


# --- made-up model and rows ------------------------------------------------------------------------------------------


def make_model(folder: Path) -> Path:
    """Save a reward model of one layer with random weights, and a byte-level tokenizer trained on a few words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **_SHAPE)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def synthetic_rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield short rows: one in twenty repeats an earlier row, one in five hundred has an empty answer."""
    draw = random.Random(seed)
    kept = [{"prompt": "why", "response": "because"}]
    for number in range(count):
        row = {
            "prompt": " ".join(draw.choices(WORDS, k=draw.randint(2, 6))),
            "response": " ".join(draw.choices(WORDS, k=draw.randint(1, 8))) if draw.random() > 0.002 else "",
        }
        if draw.random() < 0.05:
            row = draw.choice(kept)
        elif len(kept) < 1000:
            kept.append(row)
        yield {"number": number, **row}


def write_rows(path: Path, count: int, seed: int) -> Path:
    """Write made-up rows as Parquet, or as JSONL with a truncated line every 5,000 rows."""
    rows = synthetic_rows(count, seed)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("number", pa.int64()), ("prompt", pa.string()), ("response", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            while batch := [row for _, row in zip(range(50_000), rows, strict=False)]:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        return path
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            line = json.dumps(row)
            file.write((line[: len(line) // 2] if row["number"] % 5_000 == 4_999 else line) + "\n")
    return path


def work_once(options: Namespace) -> None:
    """Score with `resume`, and print the report as JSON in the last line."""
    from hf_reward.scoring.bulk import BulkSettings, score_files
    from hf_reward.scoring.reward_scorer import RewardScorer

    scorer = RewardScorer.from_pretrained(options.model, device="cpu")
    settings = BulkSettings(rows_per_shard=int(options.rows_per_shard), resume=True, show_progress=False)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("ready", flush=True)
    report = score_files(scorer, options.data, options.out, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**report.to_dict(), "loaded_mib": loaded / 1024, "peak_mib": peak / 1024}), flush=True)


def start(model: Path, data: Path, out: Path, rows_per_shard: int) -> subprocess.Popen[str]:
    """Start a process that scores, and wait until its model is loaded."""
    words = [sys.executable, __file__, "work", model, data, out, rows_per_shard]
    quiet: Any = subprocess.DEVNULL
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=quiet, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit("The scoring process could not start. Run its command by hand: " + " ".join(map(str, words)))
    return process


# --- kills -----------------------------------------------------------------------------------------------------------


def check_kills(options: Namespace) -> None:
    """Kill, resume and compare; exit code 1 if any byte differs."""
    table = Table("output", "kills", "at", "finished runs", "all equal to the uninterrupted run")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, data = make_model(folder / "model"), folder / "data"
        data.mkdir()
        for name in ("a", "b"):
            write_rows(data / f"{name}.jsonl", options.rows, options.seed + ord(name))
        for kind in options.out:
            found = kill_and_compare(model, data, folder / kind, kind, options)
            results.append(found)
            hits = "\n".join(f"{count} x {place}" for place, count in sorted(found["hits"].items()))
            equal = "yes" if found["equal"] else "NO"
            table.add_row(kind, str(found["kills"]), hits, str(found["rounds"]), equal)
    Console(width=120).print(table)
    _write_json(options, results)
    raise SystemExit(0 if all(found["equal"] for found in results) else 1)


def kill_and_compare(model: Path, data: Path, folder: Path, kind: str, options: Namespace) -> dict[str, Any]:
    """Repeat a run that is killed and resumed until it finishes, until the number of kills is reached."""
    draw, rows_per_shard = random.Random(options.seed), max(1, options.rows // 20)
    expected_at = folder / "uninterrupted"
    expected_at.mkdir(parents=True)
    began = time.monotonic()
    process = start(model, data, expected_at / _OUTPUTS[kind], rows_per_shard)
    loaded = time.monotonic()
    _finish(process)
    seconds, expected = time.monotonic() - loaded, hashes(expected_at)
    print(f"{kind}: uninterrupted, {loaded - began:.1f} s to load and {seconds:.1f} s to score", flush=True)
    hits: Counter[str] = Counter()
    rounds, equal = 0, True
    while hits.total() < options.kills or rounds == 0:
        at = folder / f"round-{rounds}"
        at.mkdir()
        for _ in range(12):  # afterwards it may finish
            place = _kill_once(model, data, at / _OUTPUTS[kind], rows_per_shard, _moment(draw, kind, seconds))
            if not place:
                break
            hits[place] += 1
            print(f"{kind}: kill {hits.total()}, {place}", flush=True)
            if place == "after the end":
                break
        _finish(start(model, data, at / _OUTPUTS[kind], rows_per_shard))
        rounds, equal = rounds + 1, equal and hashes(at) == expected
    return {"output": kind, "kills": hits.total(), "hits": dict(hits), "rounds": rounds, "equal": equal}


def _moment(draw: random.Random, kind: str, seconds: float) -> Callable[[Path, float], bool]:
    """Choose when to kill: after a random time, or when a file of a certain kind exists."""
    after = draw.uniform(0, seconds / 6)
    patterns = ["*/.*.jsonl.????????.tmp", "*/_done/.*.tmp", "*/_quarantine/.*.tmp", "*/._manifest.json.*.tmp"]
    if kind != "folder":
        patterns += [".scores.*.tmp", ".scores.*.parts"]
    pattern = draw.choice(patterns)
    if draw.random() < 0.5:
        return lambda folder, elapsed: elapsed > after
    # A file that never appears must not let the run finish each time.
    return lambda folder, elapsed: (elapsed > 0.02 and any(folder.glob(pattern))) or elapsed > seconds * 0.8


def _kill_once(model: Path, data: Path, out: Path, rows_per_shard: int, moment: Callable[[Path, float], bool]) -> str:
    """Resume a run and kill it; return its stage, or an empty text if it finished before."""
    process = start(model, data, out, rows_per_shard)
    began = time.monotonic()
    while process.poll() is None and not moment(out.parent, time.monotonic() - began):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    if not killed and process.returncode:
        raise SystemExit("A resumed run failed. Run `work` by hand to see the error.")
    return stage_of(out) if killed else ""


def stage_of(out: Path) -> str:
    """Return the stage in which a process was killed, from the files that it left."""
    folder = out if not out.suffix else out.with_name(f"{out.name}.parts")
    planned = (folder / "_manifest.json").is_file()
    seen = {
        "removing the shards after the join": any(out.parent.glob(f".{out.name}.*.parts")),
        "joining the shards": any(out.parent.glob(".scores.*.tmp")),
        "after the end": not planned and out.is_file(),
        "planning": not planned,
        "writing a marker": any(folder.glob("_done/.*.tmp")),
        "in a shard": any(folder.glob(".*.tmp")) or any(folder.glob("_quarantine/.*.tmp")),
    }
    if place := next((name for name, found in seen.items() if found), ""):
        return place
    shards = json.loads((folder / "_manifest.json").read_text(encoding="utf-8"))["names"]
    if len(list(folder.glob("_done/*.json"))) < len(shards):
        return "between two shards"
    return "before the join" if out.suffix else "after the end"


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, including hidden ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(
            f"The scoring process failed with code {process.returncode}. Run `work` by hand to see the error."
        )
    return json.loads(output.splitlines()[-1])


# --- memory ----------------------------------------------------------------------------------------------------------


def check_memory(options: Namespace) -> None:
    """Score tables of different sizes and print memory and time."""
    table = Table("rows", "file, MB", "model loaded, MiB", "peak, MiB", "seconds", "rows/s", "rejected")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_model(folder / "model")
        for rows in options.rows:
            data = write_rows(folder / f"{rows}.{options.kind}", rows, options.seed)
            found = _finish(start(model, data, folder / f"out-{rows}.{options.kind}", 10_000))
            results.append({"rows": rows, "bytes": data.stat().st_size, **found})
            rejected = sum(found["counts"]["quarantined"].values())
            cells = [f"{data.stat().st_size / 1e6:.1f}", f"{found['loaded_mib']:.0f}", f"{found['peak_mib']:.0f}"]
            table.add_row(
                f"{rows:,}", *cells, f"{found['seconds']:.0f}", f"{found['rows_per_second']:,.0f}", f"{rejected:,}"
            )
            print(f"{rows:,} rows: peak {found['peak_mib']:.0f} MiB, {found['seconds']:.0f} s", flush=True)
            data.unlink()
            shutil.rmtree(folder / f"out-{rows}.{options.kind}.parts", ignore_errors=True)
    Console(width=120).print(table)
    _write_json(options, results)
    if options.png:
        draw_memory(results, options.png)


def draw_memory(results: list[dict[str, Any]], path: Path) -> None:
    """Draw peak memory against the number of rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    rows = [found["rows"] for found in results]
    axes.plot(rows, [found["peak_mib"] for found in results], "o-", label="peak")
    axes.plot(rows, [found["loaded_mib"] for found in results], "o--", label="model loaded")
    axes.set(xscale="log", xlabel="rows", ylabel="memory, MiB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=150)


def _write_json(options: Namespace, results: list[dict[str, Any]]) -> None:
    if not options.json:
        return
    settings = {name: value for name, value in vars(options).items() if isinstance(value, (int, str, list))}
    machine = {"cores": len(os.sched_getaffinity(0)), "platform": sys.platform}
    content = {"machine": machine, "settings": settings, "results": results}
    options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
