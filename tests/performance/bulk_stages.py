"""Measure the rows per second of each stage of bulk scoring on one CPU core, without the model.

    python tests/performance/bulk_stages.py      # synthetic rows with the lengths of HH
    python tests/performance/bulk_stages.py --tokenizer models/SmolLM2-135M-Instruct --rows 20000 \
        --json stages.json

Rows are conversations. The tokenizer's threads are disabled, so that one core is measured. A run executes all stages
of its format one after the other; the last line of each format is their sum.
"""

import json
import os
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from speed_rows import as_conversations, small_tokenizer, synthetic_rows
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_reward.data.tables.arrow_rows import ParquetTable
from hf_reward.data.tables.input_row import InputRow
from hf_reward.data.tables.json_lines import JsonLinesTable
from hf_reward.data.tables.row_writers import JsonLinesWriter, ParquetWriter, ScoredRow
from hf_reward.preprocessing.response_encoding import CONVERSATIONS, ResponseEncoder
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.scoring.bulk.row_requests import ParsedRow, added_columns, distinct, parse_row
from hf_reward.scoring.bulk.settings import BulkSettings


def main() -> None:
    """Parse the command line, measure and print the results."""
    parser = ArgumentParser(description="Rows per second of each stage of bulk scoring.")
    parser.add_argument("--tokenizer", help="folder or Hub id; by default a small BPE trained on the rows")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="the fastest round counts")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    pairs = synthetic_rows(options.rows)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else small_tokenizer(pairs)
    rows = [{"id": n, "prompt": r["prompt"], "response": r["chosen"]} for n, r in enumerate(as_conversations(pairs))]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(rows, tokenizer, Path(folder), options.rounds)
    table = Table(
        "stage", "seconds", "rows/s", "MB/s of JSONL", title=f"{len(rows):,} rows, {found['tokens']:.0f} tokens"
    )
    for name, seconds in found["seconds"].items():
        cells = (f"{seconds:.2f}", f"{len(rows) / seconds:,.0f}", f"{found['bytes'] / seconds / 1e6:,.0f}")
        table.add_row(name, *cells)
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps({"rows": len(rows), **found}, indent=2) + "\n", encoding="utf-8")


def measure(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, folder: Path, rounds: int
) -> dict[str, Any]:
    """Return the seconds of each stage, the mean number of tokens and the size as JSONL."""
    settings = BulkSettings()
    lines, arrow = folder / "rows.jsonl", folder / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(list(rows)), arrow)
    parsed = [parse_row(row, settings) for row in read(JsonLinesTable(lines))]
    requests, _ = distinct([request for row in parsed for request in row.requests])
    encoder = ResponseEncoder(tokenizer=tokenizer, rule=FormatRule(max_length=None), rows=CONVERSATIONS)
    encoded = encoder.encode(requests)
    of_lines, of_arrow = (with_rewards(read(each), settings) for each in (JsonLinesTable(lines), ParquetTable(arrow)))
    schema = pa.schema([*pq.read_schema(arrow), ("reward", pa.float32())])
    stages: dict[str, Callable[[], Any]] = {
        "JSONL: find shards": lambda: list(JsonLinesTable(lines).spans(10_000)),
        "JSONL: read": lambda: read(JsonLinesTable(lines)),
        "JSONL: write": lambda: write(of_lines, folder / "out.jsonl", None),
        "Parquet: read": lambda: read(ParquetTable(arrow)),
        "Parquet: write": lambda: write(of_arrow, folder / "out.parquet", schema),
        "both: rows to distinct requests": lambda: to_requests([row.source for row in parsed], settings),
        "both: tokenise": lambda: encoder.encode(requests),
    }
    seconds = {name: min(timed(stage) for _ in range(rounds)) for name, stage in stages.items()}
    for kind in ("JSONL", "Parquet"):
        seconds[f"{kind}: all"] = sum(seconds[name] for name in stages if name.startswith((kind, "both")))
    tokens = float(np.mean([len(each.input_ids) for each in encoded]))
    return {"seconds": seconds, "tokens": tokens, "bytes": lines.stat().st_size}


def timed(stage: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    stage()
    return time.perf_counter() - began


def read(table: JsonLinesTable | ParquetTable) -> list[InputRow]:
    """Return all rows of a table."""
    return [row for span in table.spans(10_000) for row in table.read(span)]


def to_requests(rows: Sequence[InputRow], settings: BulkSettings) -> int:
    """Convert rows to distinct requests, as a run does before tokenisation."""
    parsed: list[ParsedRow] = [parse_row(row, settings) for row in rows]
    return len(distinct([request for row in parsed for request in row.requests])[0])


def with_rewards(rows: Sequence[InputRow], settings: BulkSettings) -> list[ScoredRow]:
    """Add a reward to each row."""
    reward = np.ones(1, dtype=np.float32)
    return [
        ScoredRow(row, added_columns(parse_row(row, settings), "rows", reward, settings, as_list=False)) for row in rows
    ]


def write(rows: Sequence[ScoredRow], path: Path, schema: pa.Schema | None) -> None:
    """Write rows as a shard."""
    with path.open("wb") as file:
        writer = JsonLinesWriter(file) if schema is None else ParquetWriter(file, schema)
        writer.write(rows)
        writer.close()


if __name__ == "__main__":
    main()
