"""Suspect labels: probabilities by hand, planted flips, and no list without a signal."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from hf_reward.data.preferences import to_preference_row
from hf_reward.evaluation.baselines import CrossFitted, cross_fitted_tfidf, cross_validated_tfidf
from hf_reward.evaluation.data_check import DataReport, check_data, render_page
from hf_reward.evaluation.data_check.label_noise import LIMIT, LabelNoise, find_label_noise
from hf_reward.evaluation.data_check.report_text import sections
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.metrics.calibration import fit_slope

DATA = Path(__file__).parents[3] / "shared" / "data"
GOOD, BAD = ("clear", "careful", "exact"), ("vague", "sloppy", "wrong")
FILLER = ("river", "stone", "cloud", "paper", "green", "window", "early", "seven")


def rows_with_flips(count: int, flipped: set[int], *, signal: bool = True) -> list[dict[str, Any]]:
    """Pairs that good and bad words decide, with exchanged responses in some rows."""
    rng, rows = random.Random(0), []
    for number in range(count):
        sides = [[rng.choice(FILLER) for _ in range(6)] + [rng.choice(FILLER)] for _ in range(2)]
        if signal:
            for side, words in zip(sides, (GOOD, BAD), strict=True):
                side[rng.randrange(7)] = rng.choice(words)
        chosen, rejected = (" ".join(side) for side in (sides[::-1] if number in flipped else sides))
        rows.append({"prompt": f"question {number}", "chosen": chosen, "rejected": rejected, "id": f"row-{number}"})
    return rows


def noise_of(report: DataReport) -> LabelNoise:
    assert report.label_noise is not None
    return report.label_noise


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_planted_flips_are_listed_first_and_named():
    flipped = {3, 50, 77, 120, 199}
    report = check_data(rows_with_flips(200, flipped))
    noise = noise_of(report)
    assert noise.assessed
    assert (noise.rows, noise.suspect_rows) == (200, 5)
    assert {each.row for each in noise.suspects} == flipped
    assert {each.id for each in noise.suspects} == {f"row-{number}" for number in flipped}
    found = [each.label_probability for each in noise.suspects]
    assert found == sorted(found)
    assert found[-1] <= LIMIT
    fix = next(each for each in report.fix_first if each.finding == "suspect labels")
    assert (fix.affected, fix.total) == (5, 200)
    assert {each.row for each in fix.examples} == {each.row for each in noise.suspects[:3]}
    assert json.loads(json.dumps(report.to_dict()))["label_noise"]["suspects"][0]["id"] == noise.suspects[0].id
    assert noise.suspects[0].place in render_page(report)


def test_probabilities_by_hand():
    """Three rows, two of them with several pairs: sigmoid(b * gap) of the least probable pair of each row."""
    reader = RowReader(rows_with_flips(3, set()))
    gaps = np.array([2.0, 1.0, 0.5, -1.5, *[2.0] * 36])
    row = np.array([0, 0, 1, 1, *[2] * 36])
    group = np.arange(len(gaps))
    noise = find_label_noise(CrossFitted(gaps, row, group, 5), [7, 8, 9], _Places(reader))
    assert noise is not None
    slope = fit_slope(gaps).value
    assert noise.slope == pytest.approx(slope)
    assert [each.row for each in noise.suspects] == [8]
    assert noise.suspects[0].label_probability == pytest.approx(expit(-1.5 * slope))


class _Places(RowReader):
    """Rows 7 to 9 of a larger file."""

    def __init__(self, reader: RowReader) -> None:
        self._inner = reader

    def row(self, number: int):
        return self._inner.row(number - 7)

    def place(self, number: int) -> str:
        return f"row {number}"


def test_without_a_signal_nothing_is_listed():
    report = check_data(rows_with_flips(200, set(), signal=False))
    noise = noise_of(report)
    assert (noise.assessed, noise.suspect_rows, noise.suspects) == (False, 0, [])
    lines = {part.title: part.lines for part in sections(report)}["Suspect labels"]
    assert [line.value for line in lines] == ["not assessed"]


def test_one_prompt_has_no_cross_fitted_model():
    rows = [row | {"prompt": "the same"} for row in rows_with_flips(10, set())]
    assert check_data(rows).label_noise is None


def test_a_group_is_predicted_by_models_of_other_groups():
    """A word that occurs in one group only has no weight there, so its pairs are ties."""
    rows = [
        to_preference_row({"prompt": f"p{number // 5}", "chosen": f"word{number // 5}", "rejected": "other"})
        for number in range(50)
    ]
    found = cross_fitted_tfidf(rows)
    assert len(found.gaps) == 50
    constant = [len(set(np.round(found.gaps[found.group == group], 12))) for group in np.unique(found.group)]
    assert constant == [1] * 10
    assert found.baseline("x").accuracy == cross_validated_tfidf(rows).accuracy


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not available")
def test_planted_flips_in_real_arguments():
    """About 5 s: more than half of the listed rows are among the 10% that were flipped."""
    rows = [json.loads(line) for part in ("train", "test") for line in (DATA / "ukp_convarg1" / f"{part}.jsonl").open()]
    rng = random.Random(0)
    rows = [row | {"group": row["debate"]} for row in rng.sample(rows, 3000)]
    flipped = {place for place in range(len(rows)) if rng.random() < 0.1}
    for place in flipped:
        row = rows[place]
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    noise = noise_of(check_data(rows))
    listed = {each.row for each in noise.suspects}
    assert noise.assessed
    assert len(listed) > 50
    assert len(listed & flipped) > 0.5 * len(listed)
