"""Risk-coverage of reward models with several heads: does their agreement identify wrong preferences?

    python recipes/studies/uncertainty.py --base BASE --data train.jsonl test.jsonl \
        --out runs/uncertainty --group_ends_at _
    python recipes/studies/uncertainty.py --base BASE --data train.jsonl --out runs/frozen --freeze_backbone --epochs 40

Rows are pairs with `prompt`, `chosen` and `rejected`, and a `group` (by default the prompt). Groups are assigned to
`--folds` folds. For each fold, a model with `--heads` heads and a model with one head are trained on the same rows of
the other folds and score the pairs of this fold, so no pair is scored by a model that was trained on its group.
Finished folds are not repeated.

Then the models abstain from pairs of low confidence. Five confidences are compared: the agreement of the heads
(|mean gap| / standard deviation of the gap over heads), the lower bound of the gap (|mean gap| - standard deviation),
the margin (|mean gap|), the margin of the model with one head, and a random order. The table shows the error rate of
the answered pairs, the share of all errors among the others, and the area under the risk-coverage curve (AURC, smaller
is better) with 95% intervals clustered by group. The curves are drawn into `risk_coverage.png`.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from risk_coverage import agreement, aurc_interval, aurc_spread, risk_at, risk_coverage
from transformers import set_seed

from hf_reward import AutoModelForRewardScoring, RewardConfig, RewardScorer, RewardTrainer
from hf_reward.data.sources import as_sources, load_source
from hf_reward.metrics.intervals import FEW_CLUSTERS

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)
console = Console(width=150)


def main(words: Sequence[str] | None = None) -> None:
    """Train and score the remaining folds, then print the table."""
    options = read_options(sys.argv[1:] if words is None else words)
    rows = [dict(row) for path in options.data for source in as_sources([path]) for row in load_source(source)]
    groups = np.array([group_of(row, options) for row in rows])
    folds = assign_folds(groups, options.folds, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    gaps, gap_of_one = np.zeros((len(rows), options.heads)), np.zeros(len(rows))
    for fold in range(options.folds):
        held_out = np.flatnonzero(folds == fold)
        gaps[held_out], gap_of_one[held_out] = gaps_of_fold(fold, rows, folds, options)
    result = evaluate(gaps, gap_of_one, groups)
    (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(gaps, gap_of_one, options.out / "risk_coverage.png")
    console.print(as_table(result))
    console.print(f"{result['pairs']} held-out pairs of {result['groups']} groups. Differences of AURC, paired:")
    for name, found in result["differences"].items():
        console.print(f"  {name}: {shown(found)}")
    if result["groups"] < FEW_CLUSTERS:
        console.print(f"Fewer than {FEW_CLUSTERS} groups: the intervals are unreliable.")


def read_options(words: Sequence[str]) -> Namespace:
    """Read the command-line options."""
    parser = ArgumentParser(description="Risk-coverage of a reward model with several heads.")
    parser.add_argument("--base", required=True, help="folder or Hub id of the model to start from")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--group_ends_at", help="pairs whose groups agree up to this text stay in one fold")
    parser.add_argument("--max_train_rows", type=int, default=2000, help="training rows per fold, drawn at random")
    parser.add_argument("--freeze_backbone", action="store_true", help="train only the heads")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--head_learning_rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(list(words))
    if options.heads < 2 or options.folds < 2:
        parser.error("--heads and --folds must be 2 or more")
    return options


def group_of(row: dict[str, Any], options: Namespace) -> str:
    """Return the group of a pair, cut at `--group_ends_at`."""
    group = str(row.get("group") or row["prompt"])
    return group.split(options.group_ends_at)[0] if options.group_ends_at else group


def assign_folds(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Assign each row to a fold: groups in random order, each to the fold with the fewest rows so far."""
    names, counts = np.unique(groups, return_counts=True)
    if len(names) < folds:
        raise SystemExit(f"{len(names)} groups cannot be assigned to {folds} folds. Lower --folds.")
    sizes, fold_of = np.zeros(folds, dtype=int), {}
    for place in np.random.default_rng(seed).permutation(len(names)):
        fold_of[names[place]] = int(sizes.argmin())
        sizes[sizes.argmin()] += counts[place]
    return np.array([fold_of[group] for group in groups])


# --- training and scoring ---------------------------------------------------------------------------------------------


def gaps_of_fold(
    fold: int, rows: Sequence[dict[str, Any]], folds: np.ndarray, options: Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Return reward gaps (chosen minus rejected) in a fold: by head, `(P, M)`, and of the one-head model, `(P,)`."""
    file = options.out / f"fold-{fold}.npz"
    settings = json.dumps({name: str(value) for name, value in vars(options).items()})
    if file.is_file():
        kept = np.load(file, allow_pickle=False)
        if str(kept["settings"]) != settings:
            raise SystemExit(f"{file} was made with different settings. Use a different --out.")
        return kept["gaps"], kept["gap_of_one"]
    others = np.random.default_rng(options.seed).permutation(np.flatnonzero(folds != fold))[: options.max_train_rows]
    console.print(f"fold {fold}: training on {len(others)} rows")
    training, test = ([rows[int(place)] for place in places] for places in (others, np.flatnonzero(folds == fold)))
    prompts, chosen, rejected = ([row[name] for row in test] for name in ("prompt", "chosen", "rejected"))
    several = train(training, options.heads, options)
    first, second = (several.score_with_uncertainty(prompts, side).heads.astype(float) for side in (chosen, rejected))
    one = train(training, 1, options)
    gap_of_one = np.subtract(one.score(prompts, chosen), one.score(prompts, rejected), dtype=float)
    np.savez(file, settings=settings, gaps=first - second, gap_of_one=gap_of_one)
    return first - second, gap_of_one


def train(rows: Sequence[dict[str, Any]], heads: int, options: Namespace) -> RewardScorer:
    """Train a model with some number of heads."""
    args = RewardConfig(
        output_dir=str(options.out / "run"),
        num_reward_heads=heads,
        learning_rate=options.learning_rate,
        head_learning_rate=options.head_learning_rate,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=16,
        max_length=options.max_length,
        warmup_steps=10,
        seed=options.seed,
        save_strategy="no",
        report_to="none",
        plot_curves=False,
        logging_steps=25,
    )
    pairs = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    set_seed(options.seed)  # an encoder's new head is random
    model = AutoModelForRewardScoring.from_pretrained(options.base, freeze_backbone=options.freeze_backbone)
    trainer = RewardTrainer(model=model, args=args, train_dataset=pairs)
    trainer.train()
    return RewardScorer(trainer.model, trainer.processing_tokenizer, trainer.record())  # type: ignore[arg-type]


# --- results of abstaining -------------------------------------------------------------------------------------------


def ways_to_abstain(gaps: np.ndarray, gap_of_one: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each confidence the errors to find and its values, shape `(P,)` each."""
    mean = gaps.mean(1)
    errors, errors_of_one = (np.where(gap == 0, 0.5, gap < 0) for gap in (mean, gap_of_one))
    return {
        "agreement": (errors, agreement(gaps, np.zeros_like(gaps))),
        "lower bound": (errors, np.abs(mean) - gaps.std(1, ddof=1)),
        "margin": (errors, np.abs(mean)),
        "margin of one head": (errors_of_one, np.abs(gap_of_one)),
        "random": (errors, np.zeros(len(gaps))),
    }


def evaluate(gaps: np.ndarray, gap_of_one: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Compute risk at each coverage, errors caught and AURC for each confidence, and the paired differences."""
    ways = ways_to_abstain(gaps, gap_of_one)
    result: dict[str, Any] = {"pairs": len(gaps), "groups": len(np.unique(groups)), "ways": {}, "differences": {}}
    result["error"] = float(ways["margin"][0].mean())
    for name, (wrong, confidence) in ways.items():
        risks = risk_coverage(wrong, confidence)
        found = {f"{share:.0%}": risk_at(risks, share) for share in COVERAGES}
        caught = {share: 1 - risk * float(share[:-1]) / 100 / wrong.mean() for share, risk in found.items()}
        result["ways"][name] = {"risk": found, "caught": caught, "aurc": with_interval([ways[name]], groups)}
    for name in ("agreement", "lower bound"):
        for other in ("margin", "margin of one head", "random"):
            result["differences"][f"{name} - {other}"] = with_interval([ways[name], ways[other]], groups)
    return result


def with_interval(ways: Sequence[tuple[np.ndarray, np.ndarray]], groups: np.ndarray) -> dict[str, float | None]:
    """Return AURC of one confidence, or the difference of two, with its 95% interval clustered by group."""
    found = aurc_interval(ways, groups)
    low, high = (None, None) if found is None else (found.low, found.high)
    return {"estimate": aurc_spread(ways, groups).estimate, "ci_low": low, "ci_high": high}


def shown(found: dict[str, float | None], form: str = "+.4f") -> str:
    """Format an estimate with its interval."""
    estimate, low, high = (None if value is None else format(value, form) for value in found.values())
    return f"{estimate} (too few prompts for an interval)" if low is None else f"{estimate} ({low} to {high})"


def draw(gaps: np.ndarray, gap_of_one: np.ndarray, file: Path) -> None:
    """Draw the risk-coverage curves from 5% coverage on; below, a few pairs would dominate the plot."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    coverage = np.arange(1, len(gaps) + 1) / len(gaps)
    shown_part = coverage >= 0.05
    for name, (errors, confidence) in ways_to_abstain(gaps, gap_of_one).items():
        style = {"margin": "--", "margin of one head": "-.", "random": ":"}.get(name, "-")
        axes.plot(coverage[shown_part], risk_coverage(errors, confidence)[shown_part], style, label=name)
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="share of pairs answered", ylabel="error rate among them")
    axes.legend(title="abstain by", frameon=False, loc="lower right")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def as_table(result: dict[str, Any]) -> Table:
    """Make the table: error rate of the answered pairs and share of errors caught, for each confidence."""
    table = Table(title="Error rate of the pairs answered (share of errors caught)", title_justify="left")
    table.add_column("abstain by")
    for share in COVERAGES:
        table.add_column(f"coverage {share:.0%}", justify="right")
    table.add_column("AURC (95% interval)", justify="right")
    for name, found in result["ways"].items():
        risk, caught, area = (found[key] for key in ("risk", "caught", "aurc"))
        cells = [f"{risk[share]:.1%} ({caught[share]:.0%})" for share in risk]
        table.add_row(name, *cells, shown(area, ".4f"))
    return table


if __name__ == "__main__":
    main()
