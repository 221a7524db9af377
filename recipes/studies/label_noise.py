"""Precision of the suspect labels of `hf-reward check-data` on planted errors, and the effect of dropping these rows.

    python recipes/studies/label_noise.py --data train.jsonl test.jsonl --group_ends_at _ --out runs/label_noise.json

Rows are pairs with `prompt`, `chosen`, `rejected` and a `group` (by default the prompt). A quarter of the groups is
held out. In the other rows, a share of the pairs is exchanged at random. The table has, for each share and summed over
the seeds, the number of rows listed, the share of exchanged pairs among them (precision, with its 95% interval
clustered by group) and the share of the exchanged pairs that are listed (recall). With `votes_chosen` and
`votes_rejected`, it also has the mean share of votes for the label among listed rows and among all rows. The last
columns are the accuracy on the held-out rows of a TF-IDF model fitted on all rows and on the rows that are not listed.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit
from uncertainty import group_of

from hf_reward.data.preferences import to_preference_row
from hf_reward.data.sources import as_sources, load_source
from hf_reward.evaluation.baselines import cross_fitted_tfidf, tfidf_bradley_terry
from hf_reward.evaluation.data_check.label_noise import LIMIT
from hf_reward.metrics.calibration import fit_slope
from hf_reward.metrics.intervals import clustered_interval

Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    """Plant errors, list suspect labels and print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    rows = [dict(row) for path in options.data for source in as_sources([path]) for row in load_source(source)]
    order = np.random.default_rng(0).permutation(len(rows))[: options.max_rows]
    rows = [rows[int(place)] | {"group": group_of(rows[int(place)], options)} for place in order]
    names = np.unique([row["group"] for row in rows])
    held = set(np.random.default_rng(0).permutation(names)[: len(names) // 4].tolist())
    train, test = ([row for row in rows if (row["group"] in held) == side] for side in (False, True))
    results = [measure(train, test, share, options) for share in options.shares]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table = Table(
        title=f"{len(train)} rows, {len(names) - len(held)} groups, {options.seeds} seeds", title_justify="left"
    )
    for name in results[0]:
        table.add_column(name)
    for result in results:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in result.values()))
    Console(width=150).print(table)


def read_options(words: Sequence[str]) -> Namespace:
    """Read the command-line options."""
    parser = ArgumentParser(description="Precision of suspect labels on planted errors.")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--group_ends_at", help="pairs whose groups agree up to this text are one group")
    parser.add_argument("--max_rows", type=int, default=6000, help="rows, drawn at random")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.0, 0.05, 0.1, 0.2])
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args(list(words))


def measure(train: list[Row], test: list[Row], share: float, options: Namespace) -> Row:
    """Return a row of the table."""
    listed, wrong, groups, votes, before, after = [], [], [], [], [], []
    held_out = [canonical(row, False) for row in test]
    for seed in range(options.seeds):
        exchanged = np.random.default_rng(seed).random(len(train)) < share
        rows = [canonical(row, bool(flip)) for row, flip in zip(train, exchanged, strict=True)]
        found = cross_fitted_tfidf(rows, sees_length=True)
        slope = fit_slope(found.gaps, found.group)
        suspect = (expit(slope.value * found.gaps) <= LIMIT) & slope.suggests_temperature
        listed.append(suspect)
        wrong.append(exchanged)
        groups.append([row["group"] for row in train])
        votes.append([vote_share(row, bool(flip)) for row, flip in zip(train, exchanged, strict=True)])
        kept = [row for row, out in zip(rows, suspect, strict=True) if not out]
        before.append(tfidf_bradley_terry(rows, held_out, sees_length=True).accuracy)
        after.append(tfidf_bradley_terry(kept, held_out, sees_length=True).accuracy)
    suspect, exchanged, cluster, shares = (np.concatenate(each) for each in (listed, wrong, groups, votes))
    precision = "-"
    if suspect.any() and share:
        interval = clustered_interval(exchanged[suspect].astype(float), cluster[suspect])
        precision = f"{exchanged[suspect].mean():.3f} ({interval.low:.3f} to {interval.high:.3f})"
    return {
        "exchanged": share,
        "listed": int(suspect.sum()),
        "precision": precision,
        "recall": float(suspect[exchanged].mean()) if exchanged.any() else "-",
        "votes, listed": float(shares[suspect].mean()) if suspect.any() else "-",
        "votes, all": float(shares.mean()),
        "accuracy": float(np.mean(before)),
        "without listed": float(np.mean(after)),
    }


def canonical(row: Row, exchange: bool) -> Any:
    """Return the canonical row, with exchanged responses if wanted."""
    sides = ("rejected", "chosen") if exchange else ("chosen", "rejected")
    pair = dict(zip(("chosen", "rejected"), (row[side] for side in sides), strict=True))
    return to_preference_row({"prompt": row["prompt"], "group": row["group"], **pair})


def vote_share(row: Row, exchange: bool) -> float:
    """Return the share of votes for the label, NaN without votes; votes for neither count half."""
    if "votes_chosen" not in row:
        return float("nan")
    neither = row.get("votes_equal") or 0
    found = (row["votes_chosen"] + neither / 2) / (row["votes_chosen"] + row["votes_rejected"] + neither)
    return 1 - found if exchange else found


if __name__ == "__main__":
    main()
