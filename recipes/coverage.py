"""How often do the package's intervals hold the truth, and how often do its tests raise a false alarm?

    python recipes/coverage.py                       # the whole table, as in docs/BENCHMARKS.md and docs/AUDIT.md
    python recipes/coverage.py --runs 100 --only slope

Rewards are simulated with a known truth: prompts of 1 or of 8 pairs, the 8 being independent, of an ability that varies
between prompts, or copies of one pair; calibrated models and models that are twice too sure or half as sure as they may
be. Each number is then computed by the function that the package prints it with. An interval should hold the truth in
95% of runs, and a test at the 5% level should reject a true null hypothesis in 5%. Monte-Carlo standard errors are
sqrt(p (1 - p) / runs). `withheld` counts runs in which the package gives no interval or says "too few prompts" instead
of a verdict; they are not in the other columns.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from hf_reward.audit.inference import Inference, interval, p_value
from hf_reward.audit.ranges import range_finding
from hf_reward.audit.resampling import Bootstrap, median_margin
from hf_reward.benchmarks.registry import benchmark_named
from hf_reward.benchmarks.spreads import compared, leave_out
from hf_reward.best_of_n import best_of_n_curve
from hf_reward.calibration import (
    calibration_error,
    calibration_error_interval,
    calibration_floor,
    fit_slope,
    spiegelhalter,
)
from hf_reward.intervals import clustered_interval, mean_difference, mean_spread, t_interval
from hf_reward.metrics import compare_with_length

CLUSTERS = (6, 12, 20, 50, 100)
KINDS = ("1 row", "8 independent rows", "8 rows of varying ability", "8 copies")
FEW = 20
RUNS = 400


@dataclass
class Tally:
    """Of one number in one setting."""

    held: list[bool] = field(default_factory=list)
    alarms: list[bool] = field(default_factory=list)
    withheld: int = 0

    def add(self, bounds: object, truth: float) -> None:
        """Count an interval."""
        if bounds is None or any(value is None for value in bounds):  # type: ignore[union-attr]
            self.withheld += 1
            return
        low, high = bounds  # type: ignore[misc]
        self.held.append(bool(low <= truth + 1e-12 and truth - 1e-12 <= high))


@dataclass(frozen=True)
class Setting:
    """Prompts, and how the rows of one go together."""

    clusters: int
    kind: str

    @property
    def size(self) -> int:
        """Rows of a prompt."""
        return 1 if self.kind == "1 row" else 8

    @property
    def labels(self) -> np.ndarray:
        """Prompt of each row."""
        return np.repeat(np.arange(self.clusters), self.size)

    def uniform(self, random: np.random.Generator) -> np.ndarray:
        """Numbers of (0, 1), one for each row, that go together within a prompt as the kind says."""
        count = self.clusters
        if self.kind == "8 copies":
            return np.repeat(random.random(count), 8)
        own = random.normal(size=count * self.size)
        if self.kind == "8 rows of varying ability":
            own = np.sqrt(0.3) * np.repeat(random.normal(size=count), 8) + np.sqrt(0.7) * own
        return special.ndtr(own)

    def normal(self, random: np.random.Generator) -> np.ndarray:
        """Standard normal numbers that go together in the same way."""
        return special.ndtri(self.uniform(random))


Simulation = Callable[[Setting, np.random.Generator, Tally], None]


def gaps_of(setting: Setting, random: np.random.Generator, slope: float) -> np.ndarray:
    """Reward differences whose log-odds are `slope` times themselves."""
    size = 1.5 * np.abs(setting.normal(random))
    return np.where(setting.uniform(random) < special.expit(slope * size), size, -size)


# --- rates -----------------------------------------------------------------------------------------------------------


def accuracy(rate: float) -> Simulation:
    """An accuracy, as the trainer, the data check, the baselines and the evaluate modules print it."""

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        credits = (setting.uniform(random) < rate).astype(float)
        found = clustered_interval(credits, setting.labels)
        tally.add(found.bounds, rate)
        if rate == 0.5 and found.bounds:  # "above chance", where the model is not
            tally.alarms.append(found.low > 0.5)

    return run


def paired(first: float, second: float, agree: float) -> Simulation:
    """The difference of two accuracies on the same pairs; `agree` of the pairs are right or wrong for both."""

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        found = mean_difference(_differences(setting, random, first - second, 1 - agree), setting.labels)
        bounds = found.interval().bounds
        tally.add(bounds, first - second)
        if first == second and bounds:  # p <= .05 is an interval without 0
            tally.alarms.append(not bounds[0] <= 0 <= bounds[1])

    return run


def _differences(setting: Setting, random: np.random.Generator, change: float, differ: float) -> np.ndarray:
    place = setting.uniform(random)
    return (place < (differ + change) / 2) * 1.0 - (place > 1 - (differ - change) / 2) * 1.0


def over_length(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Accuracy minus the strongest of three length rules, none of which it beats."""
    right = setting.uniform(random) < 0.7
    rules = {unit: np.where(setting.uniform(random) < 0.7, right, setting.uniform(random) < 0.7) for unit in "twc"}
    found = compare_with_length(right.astype(float), {k: v.astype(float) for k, v in rules.items()}, setting.labels)
    one = mean_difference(right - rules["t"].astype(float), setting.labels).interval()
    tally.add(one.bounds, 0.0)
    tally.alarms.append(found.shown)


# --- calibration -----------------------------------------------------------------------------------------------------


def slope(truth: float) -> Simulation:
    """The calibration slope; the alarm is an interval without 1 for a calibrated model."""

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        found = fit_slope(gaps_of(setting, random, truth), setting.labels)
        bounds = None if np.isnan(found.low) else (found.low, found.high)
        tally.add(bounds, truth)
        if truth == 1 and bounds:
            tally.alarms.append(not bounds[0] <= 1 <= bounds[1])

    return run


def brier_test(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Spiegelhalter's test of a calibrated model."""
    _, tail = spiegelhalter(gaps_of(setting, random, 1.0), setting.labels)
    tally.alarms.append(bool(tail <= 0.05))


def _true_error(truth: float, bins: int) -> float:
    sizes = np.sort(1.5 * np.abs(np.random.default_rng(0).normal(size=200_000)))
    parts = np.array_split(special.expit(truth * sizes) - special.expit(sizes), bins)
    return float(np.sqrt(np.mean([part.mean() ** 2 for part in parts])))


def debiased_error(truth: float) -> Simulation:
    """The debiased calibration error; the alarm is an interval above 0 for a calibrated model."""
    errors: dict[int, float] = {}

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        gaps = gaps_of(setting, random, truth)
        found = calibration_error_interval(gaps, clusters=setting.labels)
        bins = max(1, min(15, len(gaps) // 50))
        tally.add(found.bounds, errors.setdefault(bins, _true_error(truth, bins)))
        if truth == 1 and found.bounds:
            tally.alarms.append(found.low > 0)

    return run


def log_loss(truth: float) -> Simulation:
    """Log loss less that of a constant prediction, over prompts: a mean without bounds."""
    sizes = 1.5 * np.abs(np.random.default_rng(0).normal(size=400_000))
    wins = special.expit(truth * sizes)
    exact = float(np.mean(-wins * special.log_expit(sizes) - (1 - wins) * special.log_expit(-sizes)))

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        losses = -special.log_expit(gaps_of(setting, random, truth))
        tally.add(t_interval(mean_spread(losses, setting.labels)).bounds, exact)

    return run


# --- benchmarks ------------------------------------------------------------------------------------------------------

_SUBSETS = ("Factuality", "Math", "Safety")
_RATES = (0.6, 0.75, 0.9)


def _credits(values: np.ndarray) -> list[dict[str, float]]:
    return [{_SUBSETS[number % 3]: float(value)} for number, value in enumerate(values)]


def _by_subset(setting: Setting) -> np.ndarray:
    return np.array([_RATES[number % 3] for number in range(setting.clusters * setting.size)])


def benchmark_score(part: str) -> Simulation:
    """RewardBench 2's overall number, a mean of subsets, or one subset."""

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        right = setting.uniform(random) < _by_subset(setting)
        found = leave_out(benchmark_named("rewardbench2"), _credits(right), list(map(str, setting.labels)))
        number, truth = (("overall", ""), np.mean(_RATES)) if part == "overall" else (("sections", "Math"), _RATES[1])
        tally.add(found.interval(number).bounds, float(truth))

    return run


def benchmark_compare(change: float) -> Simulation:
    """`benchmark compare`: the difference of two runs and its p-value."""

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        first = setting.uniform(random) < 0.6
        values = _differences(setting, random, change, 0.3)
        both = np.clip(first.astype(float), np.maximum(0, -values), 1 - np.maximum(0, values))
        names = list(map(str, setting.labels))
        found = compared(benchmark_named("rewardbench2"), _credits(both + values), _credits(both), names)["overall", ""]
        bounds = found.interval.bounds
        tally.add(bounds, change)
        if change == 0 and bounds:
            tally.alarms.append(not bounds[0] <= 0 <= bounds[1])

    return run


# --- audit -----------------------------------------------------------------------------------------------------------


_BOOTSTRAPS = [Bootstrap(300, seed) for seed in range(40)]
"""Each remembers its clusters' draws."""


def _inference(setting: Setting, random: np.random.Generator) -> tuple[Inference, list[str]]:
    clusters = [str(place) for place in setting.labels]
    bootstrap = _BOOTSTRAPS[int(random.integers(len(_BOOTSTRAPS)))]
    return Inference(bootstrap, median_margin(bootstrap, 1.5 * setting.normal(random), clusters)), clusters


def effect(size: float) -> Simulation:
    """An effect in typical margins; the alarms are the verdicts `biased` at 0, and `equivalent` at delta."""
    margin = 1.5 * float(special.ndtri(0.75))

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        inference, clusters = _inference(setting, random)
        values = size * margin + 0.5 * setting.normal(random)
        found = inference.reward_effect(("f", "n", "l"), values, clusters)
        tally.add((found.ci_low, found.ci_high), size)
        if size in (0.0, 0.1):
            tally.alarms.append(found.verdict == ("biased" if size == 0 else "equivalent"))

    return run


def audit_rate(rate: float) -> Simulation:
    """How often junk wins; the alarms are `biased` or `equivalent` at the limit, .05."""

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        inference, clusters = _inference(setting, random)
        found = inference.rate(("f", "n", "l"), (setting.uniform(random) < rate).astype(float), clusters)
        tally.add((found.ci_low, found.ci_high), rate)
        if rate == 0.05:
            tally.alarms.append(found.verdict == "equivalent")

    return run


def audit_change(change: float, differ: float) -> Simulation:
    """Flips to the worse minus flips to the better; the alarms are `biased` at 0, and `equivalent` at delta, .05."""

    def run(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        inference, clusters = _inference(setting, random)
        found = inference.change(("f", "n", "l"), _differences(setting, random, change, differ), clusters)
        tally.add((found.ci_low, found.ci_high), change)
        if change in (0.0, 0.05):
            tally.alarms.append(found.verdict == ("biased" if change == 0 else "equivalent"))

    return run


def audit_p(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """P of an effect of 0, before any correction, and its interval."""
    inference, clusters = _inference(setting, random)
    sample = inference.sample(setting.normal(random), clusters)
    tally.add(interval(sample, 0.95), 0.0)
    tail = p_value(sample, 0.0, above=False)
    tally.alarms.append(tail is not None and tail <= 0.05)


def group_range(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Largest minus smallest of four groups' means that are .2 apart; the alarm is p <= .05 where they are equal."""
    if setting.size > 1:  # an item is a cluster of its own
        return
    inference, clusters = _inference(setting, random)
    noise = random.normal(size=(setting.clusters, 4))
    about = ("f", "n", "l")
    found = range_finding(inference, about, noise + np.array([0, 0.2, 0.4, 0.6]), clusters, delta=0.05, unit="units")
    tally.add((found.ci_low, found.ci_high), 0.6)
    tail = range_finding(inference, about, noise, clusters, delta=0.05, unit="units").p_value
    tally.alarms.append(tail is not None and tail <= 0.05)


def best_of_four(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Worth of the best of four by the reward, each row a list of four right or wrong answers."""
    quality = setting.normal(random)
    answers = quality[:, None] + random.normal(size=(len(quality), 4))
    gold = (answers > 0).astype(float)
    worth = best_of_n_curve(answers + random.normal(size=answers.shape), gold)[:, -1]
    tally.add(t_interval(mean_spread(worth, setting.labels)).bounds, _BEST_OF_FOUR)


def _best_of_four() -> float:
    random = np.random.default_rng(1)
    answers = random.normal(size=(400_000, 1)) + random.normal(size=(400_000, 4))
    picked = np.argmax(answers + random.normal(size=answers.shape), axis=1)
    return float((answers[np.arange(len(picked)), picked] > 0).mean())


_BEST_OF_FOUR = _best_of_four()

SIMULATIONS: dict[str, Simulation] = {
    "accuracy .5 (above chance)": accuracy(0.5),
    "accuracy .7": accuracy(0.7),
    "accuracy .9": accuracy(0.9),
    "accuracy .97": accuracy(0.97),
    "accuracy difference 0": paired(0.7, 0.7, 0.7),
    "accuracy difference .1": paired(0.8, 0.7, 0.7),
    "accuracy beyond length": over_length,
    "benchmark overall": benchmark_score("overall"),
    "benchmark section": benchmark_score("section"),
    "benchmark compare 0": benchmark_compare(0.0),
    "benchmark compare .1": benchmark_compare(0.1),
    "slope 1": slope(1.0),
    "slope .5 (overconfident)": slope(0.5),
    "slope 2 (underconfident)": slope(2.0),
    "Spiegelhalter's p": brier_test,
    "debiased error, calibrated": debiased_error(1.0),
    "debiased error, overconfident": debiased_error(0.5),
    "debiased error, underconfident": debiased_error(2.0),
    "log loss, calibrated": log_loss(1.0),
    "log loss, overconfident": log_loss(0.5),
    "audit effect 0 (biased)": effect(0.0),
    "audit effect .1 (equivalent)": effect(0.1),
    "audit effect .5": effect(0.5),
    "audit p of an effect": audit_p,
    "audit rate .05 (equivalent)": audit_rate(0.05),
    "audit rate .2": audit_rate(0.2),
    "audit rate difference 0 (biased)": audit_change(0.0, 0.2),
    "audit rate difference .05 (equivalent)": audit_change(0.05, 0.05),
    "audit range of groups": group_range,
    "best of 4": best_of_four,
}


def floor_ratio(setting: Setting, runs: int, seed: int) -> float:
    """Mean ECE floor over the mean naive error of calibrated models: 1 is right."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(runs):
        gaps = gaps_of(setting, random, 1.0)
        floor = calibration_floor(gaps, clusters=setting.labels, draws=20, seed=int(random.integers(1 << 30)))
        pairs.append((floor, calibration_error(gaps)))
    floors, errors = np.mean(pairs, axis=0)
    return float(floors / errors)


def measure(name: str, setting: Setting, runs: int, seed: int) -> Tally:
    """Run one simulation.

    Args:
        name: One of `SIMULATIONS`.
        setting: Prompts and rows.
        runs: How often.
        seed: Of the runs.

    Returns:
        What was counted.
    """
    random = np.random.default_rng([seed, *name.encode(), setting.clusters, KINDS.index(setting.kind)])
    tally = Tally()
    for _ in range(runs):
        SIMULATIONS[name](setting, random, tally)
    return tally


def _cell(hits: list[bool], runs: int) -> str:
    return f"{np.mean(hits):.3f}".lstrip("0") if len(hits) >= runs / 10 else "-"


def _line(job: tuple[str, str, tuple[int, ...], int, int]) -> str:
    name, kind, clusters, runs, seed = job
    cells = []
    for count in clusters:
        tally = measure(name, Setting(count, kind), runs, seed)
        cell = f"{_cell(tally.held, runs)} / {_cell(tally.alarms, runs)}"
        cells.append("too few" if tally.withheld >= runs and not tally.alarms else cell)
    known = any(cell != "- / -" for cell in cells)
    return f"| {name} | {kind} | " + " | ".join(cells) + " |" if known else ""


def table(names: list[str], clusters: tuple[int, ...], runs: int, seed: int) -> Iterator[str]:
    """Lines of the Markdown table: for each number and kind of prompt, coverage / false alarms by number of prompts."""
    yield "| number | rows of a prompt | " + " | ".join(f"{count} prompts" for count in clusters) + " |"
    yield "|---|---|" + "---|" * len(clusters)
    jobs = [(name, kind, clusters, runs, seed) for name in names for kind in KINDS]
    with ProcessPoolExecutor(2) as pool:
        yield from filter(None, pool.map(_line, jobs))
    if len(names) == len(SIMULATIONS):
        for kind in KINDS:
            ratios = [floor_ratio(Setting(count, kind), runs, seed) for count in clusters]
            yield f"| ECE floor / mean error if calibrated | {kind} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--only", default="", help="numbers whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = [name for name in SIMULATIONS if args.only in name]
    start = time.perf_counter()
    for line in table(names, CLUSTERS, args.runs, args.seed):
        print(line, flush=True)
    error = np.sqrt(0.05 * 0.95 / args.runs)
    print(
        f"\nCoverage / false alarms at 5%; {args.runs} runs each, Monte-Carlo standard error {error:.3f} at .95 or .05."
    )
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
