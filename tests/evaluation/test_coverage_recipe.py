"""Every interval and p-value of the simulation for docs/reference/statistics.md: few runs, fixed seeds."""

import sys
from pathlib import Path

import numpy as np
import pytest

from hf_reward.metrics.intervals import clustered_interval

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from coverage import NUMBERS, cell_of, complete_table, measure, short_table
from coverage_setting import CLUSTERS, Number, Setting, Tally

RUNS = 80
FEWER = {
    "check-data: two sets": 5,
    "TF-IDF": 5,
    "AURC": 20,
    "benchmark compare": 20,
    "audit range": 20,
    "audit best": 40,
}
"""Number of runs for slow numbers."""


@pytest.mark.parametrize("name", NUMBERS)
def test_intervals_have_coverage_and_tests_few_false_alarms(name: str):
    """20 prompts: a correct interval or test misses these bounds in fewer than 1% of seeds."""
    runs = next((count for slow, count in FEWER.items() if name.startswith(slow)), RUNS)
    tally = measure(name, Setting(20, NUMBERS[name].kinds[-1]), runs, seed=1)
    assert tally.held or tally.alarms or tally.ratios or tally.withheld == runs
    if tally.held:
        assert sum(tally.held) >= 0.85 * len(tally.held)
    assert sum(tally.alarms) <= max(3, 0.12 * len(tally.alarms))
    for floor, error in tally.ratios[:1]:
        assert 0 < floor < 1 > error > 0


def test_a_wrong_interval_is_detected(monkeypatch: pytest.MonkeyPatch):
    """An interval that treats eight copies as independent rows covers the truth in far fewer runs."""

    def naive(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        credits = (setting.uniform(random) < 0.7).astype(float)
        tally.add(clustered_interval(credits, np.arange(len(credits))).bounds, 0.7)

    monkeypatch.setitem(NUMBERS, "accuracy .7", Number(naive))
    assert sum(measure("accuracy .7", Setting(20, "8 copies"), RUNS, seed=1).held) < 0.7 * RUNS


def test_the_tables_have_a_line_for_each_number():
    cells = [cell_of("slope 1", kind, count, 10, 0) for kind in NUMBERS["slope 1"].kinds for count in CLUSTERS]
    assert [line.split("|")[1].strip() for line in short_table(cells)][2:] == ["slope 1"]
    assert len(list(complete_table(cells))) == 2 + 4
    withheld = [cell_of("log loss, calibrated", "1 row", count, 3, 0) for count in CLUSTERS]
    assert [cell["withheld"] for cell in withheld] == [1, 1, 1, 0, 0]
