"""Real data sets, if available: the check finds their known properties."""

import json
from pathlib import Path

import pytest

from hf_reward.evaluation.data_check import DataReport, check_data

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not available")]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def ukp() -> DataReport:
    rows = [json.loads(line) for part in ("train", "test") for line in (DATA / "ukp_convarg1" / f"{part}.jsonl").open()]
    for row in rows:
        row["group"] = row["debate"]
    return check_data(rows)


def test_ukp_prefers_the_longer_argument(ukp: DataReport):
    found = ukp.length("words")
    assert found.share == pytest.approx(0.764, abs=5e-4)  # words, ties left out
    assert (found.pairs, found.ties, found.verdict) == (11511, 131, "imbalanced")
    assert "length imbalance" in {fix.finding for fix in ukp.fix_first}


def test_ukp_leaks_in_a_random_split(ukp: DataReport):
    rules = ukp.shallow_rules
    assert rules is not None
    assert rules.by_prompt is not None
    assert rules.by_row is not None
    assert rules.by_prompt.accuracy == pytest.approx(0.77, abs=0.02)
    assert rules.by_row.accuracy == pytest.approx(0.925, abs=0.01)
    assert ukp.fix_first[0].finding == "random split"


def test_ukp_debates_that_were_held_out():
    train, held = (str(DATA / "ukp_convarg1" / f"{part}.jsonl") for part in ("train", "test"))
    report = check_data(train, eval_data=held)
    assert report.shallow_rules is not None
    assert report.shallow_rules.on_eval is not None
    assert report.shallow_rules.on_eval.accuracy == pytest.approx(0.79, abs=0.01)
    assert report.leakage is not None
    assert report.leakage.leaked_rows == 0


def test_ukp_raters_agree_as_published(ukp: DataReport):
    votes = ukp.votes
    assert votes is not None
    assert (votes.rows, votes.votes) == (11642, 58083)
    assert votes.rater_vs_rest == pytest.approx(0.714, abs=5e-4)
    assert votes.rater_vs_label == pytest.approx(0.759, abs=5e-4)
    assert votes.unanimous == pytest.approx(0.27, abs=5e-3)


def test_pandalm_has_booleans_and_empty_texts():
    rows = [json.loads(line) for line in (DATA / "pandalm_test" / "testset-v1.jsonl").open()]
    raw = [
        {
            "prompt": row["instruction"] + (f"\n{row['input']}" if row["input"] else ""),
            "response_a": row["response1"],
            "response_b": row["response2"],
            "annotators": [row[f"annotator{number}"] for number in (1, 2, 3)],
        }
        for row in rows
    ]
    report = check_data(raw)
    assert report.data.unusable == {
        "`response_a` is empty": 29,
        "`response_b` is empty": 25,
        "`response_a` must be text, but is bool": 4,
        "`response_b` must be text, but is bool": 2,
    }
    # 54 rows have an empty side; in 2 of them the majority is for neither, which leaves the 52 of the README.
    empty = [row["annotators"] for row in raw if "" in (row["response_a"], row["response_b"])]
    assert (len(empty), sum(max(map(votes.count, (1, 2))) > 1 for votes in empty)) == (54, 52)
    assert report.votes is not None
    assert report.votes.unanimous == pytest.approx(0.88, abs=0.005)


def test_hh_has_prompts_that_differ_and_empty_answers():
    report = check_data(str(DATA / "hh" / "harmless_test.jsonl"), layout="hh")
    assert (report.data.rows, report.data.usable, report.data.prompts_differed) == (2312, 2308, 5)
    assert report.data.unusable == {"`chosen` must end with a nonempty Assistant turn": 4}
    assert report.length("words").share == pytest.approx(0.44, abs=0.005)  # the shorter one is preferred
    assert report.duplicates.prompt_groups == 2306


def test_the_mix_was_split_without_leaks():
    train, held = (str(DATA / "chat_human_mix" / f"{part}.jsonl") for part in ("train", "test"))
    report = check_data(train, eval_data=held)
    assert report.leakage is not None
    assert report.leakage.leaked_rows == 0
    assert report.votes is not None
    assert report.votes.rows == 768
