"""Search the learning rates of the backbone and of the head by the log loss on held-out training rows.

    python recipes/studies/tune_learning_rate.py --config recipes/quickstart.yaml --out runs/rates \
        --learning_rates 1e-4 3e-4 1e-3 --head_learning_rates 1e-3 1e-2 -- --max_train_rows 960

Every trial is a run of recipes/train.py with the settings of `--config` and of the arguments after `--`, and its own
`learning_rate` and `head_learning_rate`. A share of the training rows is held out by prompt (`--test_size`), the same
rows in every trial. `eval_data` is not read, so it still measures the chosen model. No model is saved.

`--sampler grid` runs all pairs of the values. `--sampler tpe` draws `--trials` pairs between the lowest and the highest
value with Optuna's tree-structured Parzen estimator. Trials are stored in `study.db` in `--out`. The same command
resumes, and a command with other values adds trials. docs/guides/learning-rates.md explains the table.
"""

import gc
import json
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from scipy.special import log_expit

sys.path.insert(0, str(Path(__file__).parents[1]))

from train import build_trainer, load_data, set_verbosity

from hf_reward.data.atomic_file import write_atomic
from hf_reward.data.extras import require
from hf_reward.metrics.intervals import t_interval
from hf_reward.metrics.preference import strict_pairs
from hf_reward.metrics.spread import mean_spread
from hf_reward.training.evaluation import LABELS
from hf_reward.training.run_arguments import RunArguments, parse_run_arguments
from hf_reward.training.run_record import json_safe
from hf_reward.training.training_args import RewardConfig

RATES = ("learning_rate", "head_learning_rate")
STARTUP_TRIALS = 5
"""Random trials before the estimator draws; Optuna's default of 10 would leave few of a dozen trials."""
_QUIET = {
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": "false",
    "plot_curves": "false",
    "push_to_hub": "false",
}
console = Console(width=150)


@dataclass(frozen=True)
class Search:
    """Settings of a search."""

    words: list[str]
    """Arguments of recipes/train.py that all trials share."""
    run: RunArguments
    seed: int
    values: tuple[list[float], list[float]]
    """Searched values of `RATES`."""
    out: Path

    @property
    def stamp(self) -> str:
        """Settings that trials of one study must share."""
        return json.dumps({"words": self.words, "test_size": self.run.test_size})


def main(words: Sequence[str] | None = None) -> None:
    """Run the missing trials and print the table."""
    options, rest = read_options(sys.argv[1:] if words is None else words)
    search = read_search(options, rest)
    study = open_study(search)
    trials = grid_trials(study, search) if options.sampler == "grid" else tpe_trials(study, search, options.trials)
    for trial in trials:
        rates = tuple(trial.params[name] for name in RATES)
        found = measure(search, rates, search.out / f"trial_{trial.number}.npz")
        trial.set_user_attr("found", found)
        study.tell(trial, found["log_loss"])
        console.print(f"trial {trial.number}: {described(rates)}, log loss {found['log_loss']:.4f}")
    report(finished(study), search)


def read_options(words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return the options of this recipe and the arguments for train.py."""
    parser = ArgumentParser(description="Search learning rates by the held-out log loss.")
    parser.add_argument("--config", help="YAML file of the run; or pass its settings after `--`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--learning_rates", type=float, nargs="+", help="by default a third, once and three times that of the run"
    )
    parser.add_argument(
        "--head_learning_rates",
        type=float,
        nargs="+",
        help="by default a third, once and three times that of the run; if it has none, 1, 10 and 100 times its "
        "`learning_rate`",
    )
    parser.add_argument("--sampler", choices=("grid", "tpe"), default="grid")
    parser.add_argument("--trials", type=int, default=12, help="trials of the study with `--sampler tpe`")
    parser.add_argument(
        "--test_size",
        type=float,
        help="share of the training rows to hold out by prompt; by default that of the run, or 0.2",
    )
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    options, rest = parser.parse_args(words[:cut]), words[cut + 1 :]
    if any(word.split("=")[0] == "--output_dir" for word in rest):
        parser.error("--output_dir has no effect, because no model is saved; set --out")
    wrong = [each for each in [*(options.learning_rates or []), *(options.head_learning_rates or [])] if not each > 0]
    if wrong:
        parser.error(f"learning rates must be above 0, but {wrong[0]:g} is not")
    return options, ([*("--config", options.config)] if options.config else []) + rest


def read_search(options: Namespace, words: list[str]) -> Search:
    """Return the settings of the search, and create its folder."""
    if PartialState().num_processes > 1:
        raise SystemExit("The search runs in one process. Start it with `python` instead of `accelerate launch`.")
    run, args = parse_run_arguments([*words, "--output_dir", str(options.out)])
    set_verbosity(args)
    if run.eval_data:
        console.print("`eval_data` is not read; training rows are held out instead.")
    run = replace(run, eval_data=None, test_size=options.test_size or run.test_size or 0.2)
    rate = float(args.learning_rate)
    if run.freeze_backbone and options.learning_rates:
        raise SystemExit("`freeze_backbone` trains the head only. Leave out --learning_rates.")
    rates = [rate] if run.freeze_backbone else options.learning_rates or [rate / 3, rate, 3 * rate]
    head = args.head_learning_rate
    heads = options.head_learning_rates or ([head / 3, head, 3 * head] if head else [rate, 10 * rate, 100 * rate])
    options.out.mkdir(parents=True, exist_ok=True)
    return Search(words, run, int(args.seed), (sorted(set(rates)), sorted(set(heads))), options.out)


# --- trials -----------------------------------------------------------------------------------------------------------


def open_study(search: Search) -> Any:
    """Open the stored study, or create one; trials that were interrupted are closed."""
    optuna = require("optuna", "tuning")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{(search.out / 'study.db').resolve()}"
    study = optuna.create_study(study_name="rates", storage=storage, direction="minimize", load_if_exists=True)
    earlier = study.user_attrs.get("stamp")
    if earlier not in (None, search.stamp):
        raise SystemExit(f"{search.out} has trials of a run with other settings: {earlier}. Use another `--out`.")
    study.set_user_attr("stamp", search.stamp)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def finished(study: Any) -> list[Any]:
    """Return the completed trials, lowest log loss first."""
    optuna = require("optuna", "tuning")
    trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    return sorted(trials, key=lambda trial: trial.value)


def grid_trials(study: Any, search: Search) -> Iterator[Any]:
    """Yield a trial for each pair of values without one."""
    done = [tuple(trial.params[name] for name in RATES) for trial in finished(study)]
    for rates in product(*search.values):
        if not any(np.allclose(rates, each, rtol=1e-6, atol=0) for each in done):
            study.enqueue_trial(dict(zip(RATES, rates, strict=True)))
            yield study.ask(_distributions(search))


def tpe_trials(study: Any, search: Search, count: int) -> Iterator[Any]:
    """Yield trials until the study has `count`; a resumed study draws the same values as one that was not stopped."""
    optuna = require("optuna", "tuning")
    for done in range(len(finished(study)), count):
        study.sampler = optuna.samplers.TPESampler(seed=search.seed + done, n_startup_trials=STARTUP_TRIALS)
        yield study.ask(_distributions(search))


def _distributions(search: Search) -> dict[str, Any]:
    optuna = require("optuna", "tuning")
    return {
        name: optuna.distributions.FloatDistribution(values[0], values[-1], log=True)
        for name, values in zip(RATES, search.values, strict=True)
    }


def measure(search: Search, rates: Sequence[float], file: Path) -> dict[str, float]:
    """Train with two learning rates and measure on the held-out rows.

    Args:
        search: The search.
        rates: Values of `RATES`.
        file: File for the reward gaps and the prompt of every held-out pair.

    Returns:
        `log_loss` (infinite if the training diverged), `accuracy` and `std_reward` (not then), and `seconds`.
    """
    start = perf_counter()
    with TemporaryDirectory(dir=search.out) as folder:
        own = _QUIET | {"output_dir": folder} | dict(zip(RATES, map(repr, rates), strict=True))
        _, args = parse_run_arguments([*search.words, *(word for name in own for word in (f"--{name}", own[name]))])
        found = _train(search.run, args, file)
    gc.collect()
    return found | {"seconds": perf_counter() - start}


def _train(run: RunArguments, args: RewardConfig, file: Path) -> dict[str, float]:
    trainer = build_trainer(run, args, *load_data(run, args))
    try:
        trainer.train()
        held_out: Any = trainer.eval_dataset
        output: Any = trainer.predict(held_out, metric_key_prefix="eval")
    except FloatingPointError:  # a loss that is not finite
        return {"log_loss": math.inf}
    finally:
        trainer.accelerator.end_training()
    labels, rewards = dict(zip(LABELS, output.label_ids, strict=True)), np.asarray(output.predictions, float)
    pairs = strict_pairs(labels["ranks"])
    gaps = rewards[pairs.row, pairs.better] - rewards[pairs.row, pairs.worse]
    np.savez(file, gaps=gaps, prompts=labels["groups"][pairs.row])
    return {name: float(output.metrics[f"eval_{name}"]) for name in ("log_loss", "accuracy", "std_reward")}


# --- the table --------------------------------------------------------------------------------------------------------


def report(trials: Sequence[Any], search: Search) -> None:
    """Print the trials and the chosen values, and write `results.json`."""
    rows = [
        {**{name: trial.params[name] for name in RATES}, **trial.user_attrs["found"], "trial": trial.number}
        for trial in trials
    ]
    best = rows[0]
    if math.isinf(best["log_loss"]):
        raise SystemExit("The loss became infinite in every trial. Search lower learning rates.")
    for row in rows:
        row |= difference(search, row, best)
    chosen = {name: best[name] for name in RATES}
    content = {
        "trials": [json_safe(row) for row in rows],
        "chosen": chosen,
        "edges": edges(rows, search),
        "settings": json.loads(search.stamp),
    }
    write_atomic(search.out / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    console.print(as_table(rows))
    ties = sum(row["indistinguishable"] for row in rows[1:])
    console.print(f"{ties} of the other {len(rows) - 1} trials have a difference whose interval includes 0.")
    for sentence in content["edges"]:
        console.print(sentence)
    console.print("The log loss of the best of several trials is optimistic. Measure the final model on other rows.")
    console.print("\n".join(f"{name}: {value:.3g}" for name, value in chosen.items()))


def difference(search: Search, row: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """Return the log loss minus that of the best trial on the same pairs, with a 95% interval clustered by prompt."""
    if row["trial"] == best["trial"] or math.isinf(row["log_loss"]):
        missing = 0.0 if row["trial"] == best["trial"] else math.inf
        return {"difference": missing, "difference_ci": None, "indistinguishable": missing == 0}
    own, other = (np.load(search.out / f"trial_{each['trial']}.npz") for each in (row, best))
    losses = [-log_expit(each["gaps"]) for each in (own, other)]
    found = t_interval(mean_spread(losses[0] - losses[1], own["prompts"]))
    bounds = found.bounds
    unclear = bounds is None or bounds[0] <= 0 <= bounds[1]
    return {"difference": row["log_loss"] - best["log_loss"], "difference_ci": bounds, "indistinguishable": unclear}


def edges(rows: Sequence[dict[str, Any]], search: Search) -> list[str]:
    """Return a sentence for each chosen rate in the outer 5% of the searched range, on a logarithmic scale."""
    found = []
    for name, values in zip(RATES, search.values, strict=True):
        tried = [*values, *(row[name] for row in rows)]
        low, high, chosen = min(tried), max(tried), rows[0][name]
        place = math.log(chosen / low) / math.log(high / low) if high > low else 0.5
        if not 0.05 < place < 0.95:
            side = "lower" if place < 0.5 else "higher"
            found.append(f"The chosen {name} {chosen:.3g} is at the edge of the searched values: add {side} ones.")
    return found


def as_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a row per trial."""
    names = (*RATES, "log loss", "difference (95% interval)", "accuracy", "std of rewards", "seconds")
    table = Table(title="Trials, lowest held-out log loss first (equal rewards: 0.693)", title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        ci = row["difference_ci"]
        shown = f"{row['difference']:+.3f}" + (f" ({ci[0]:+.3f} to {ci[1]:+.3f})" if ci else "")
        first = [f"{row[name]:.3g}" for name in RATES]
        if math.isinf(row["log_loss"]):
            table.add_row(*first, "diverged", "-", "-", "-", f"{row['seconds']:.0f}")
            continue
        numbers = [f"{row['accuracy']:.1%}", f"{row['std_reward']:.2f}", f"{row['seconds']:.0f}"]
        table.add_row(*first, f"{row['log_loss']:.3f}", "best" if row is rows[0] else shown, *numbers)
    return table


def described(rates: Sequence[float]) -> str:
    """Return the rates in words."""
    return ", ".join(f"{name} {rate:.3g}" for name, rate in zip(RATES, rates, strict=True))


if __name__ == "__main__":
    main()
