"""Rated rows become pairs in every command, and weights from scores give the scaled Bradley-Terry loss."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

from hf_reward import to_pairs
from hf_reward.cli.app import app
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.sources import Source, as_sources, load_source
from hf_reward.evaluation.data_check import check_data
from hf_reward.losses.preference_loss import PreferenceLoss
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.training.run_arguments import RunArguments

RATED = [
    {"prompt": "p", "response": "best", "score": 5},
    {"prompt": "p", "response": "good", "score": 4},
    {"prompt": "p", "response": "bad", "score": 1},
    {"prompt": "q", "response": "left", "score": 2},
    {"prompt": "q", "response": "right", "score": 4.5},
]
PAIRS = {("best", "good"), ("best", "bad"), ("good", "bad"), ("right", "left")}
FAR = {("best", "bad"), ("good", "bad"), ("right", "left")}


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs_in(data: Any, **options: Any) -> set[tuple[Any, ...]]:
    (source,) = as_sources(data, **options)
    rows: Any = load_source(source)
    read = [to_preference_row(row, layout=source.layout, columns=source.columns) for row in rows]
    assert all(row.ranks == [0, 1] for row in read)
    return {tuple(row.responses) for row in read}


@pytest.mark.parametrize(("gap", "expected"), [(0.0, PAIRS), (1.0, PAIRS), (2.0, FAR), (2.5, FAR)])
def test_a_gap_makes_pairs_of_rated_rows_from_any_source(gap, expected, tmp_path):
    path = write(tmp_path / "rated.jsonl", RATED)
    csv = tmp_path / "rated.csv"
    lines = [",".join(map(str, row.values())) for row in RATED]
    csv.write_text("\n".join(["prompt,response,score", *lines]), encoding="utf-8")
    for data in (path, str(csv), RATED, Dataset.from_list(RATED), Source(data=path, min_gap=gap)):
        assert pairs_in(data, **({} if isinstance(data, Source) else {"min_gap": gap})) == expected
    lists = [{"prompt": "p", "responses": ["best", "good", "bad"], "scores": [5, 4, 1]}]
    assert pairs_in(lists, min_gap=gap) == {pair for pair in expected if pair[1] != "left"}


def test_columns_name_the_rated_data_and_not_its_pairs(tmp_path, text_tokenizer):
    rows = [{"question": row["prompt"], "answer": row["response"], "stars": row["score"]} for row in RATED]
    options: dict[str, Any] = {"columns": {"prompt": "question", "response": "answer", "score": "stars"}}
    assert pairs_in(rows, min_gap=2.0, **options) == FAR
    data, summary = prepare_preferences(rows, text_tokenizer, min_gap=2.0, **options)
    assert (summary.kept, len(data)) == (3, 3)
    assert check_data(rows, min_gap=2.0, **options).data.strict_pairs == 3


def test_commands_accept_the_gap(tmp_path):
    data = write(tmp_path / "rated.jsonl", RATED)
    out = str(tmp_path / "out")
    refused = CliRunner().invoke(app, ["check-data", "--data", data, "--out", out])
    assert "`--min-gap 1.0`" in str(refused.exception)
    result = CliRunner().invoke(app, ["check-data", "--data", data, "--out", out, "--min-gap", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))["data"]["rows"] == 3
    result = CliRunner().invoke(app, ["split", "--data", data, "--out", out, "--min-gap", "2", "--test-size", "1"])
    assert result.exit_code == 0, result.output
    sides = [tmp_path / "out" / f"{side}.jsonl" for side in ("train", "test")]
    found = [json.loads(line) for path in sides for line in path.read_text(encoding="utf-8").splitlines()]
    assert {(row["chosen"], row["rejected"]) for row in found} == FAR
    prompts = [{json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()} for path in sides]
    assert not prompts[0] & prompts[1]


def test_a_run_accepts_the_gap():
    run = RunArguments(model_name_or_path="m", train_data=["a"], min_gap=0.5)
    assert run.min_gap == 0.5
    with pytest.raises(ValueError, match="`min_gap` need all training rows"):
        RunArguments(model_name_or_path="m", train_data=["a"], min_gap=0.5, streaming=True)


def test_a_row_without_a_rating_is_a_bad_row_that_training_can_skip(tmp_path, text_tokenizer):
    path = write(tmp_path / "rated.jsonl", [*RATED, {"prompt": "p", "response": "x", "score": "high"}])
    message = r"rated\.jsonl, line 6: `score` must be a finite number, but is 'high'"
    with pytest.raises(PreferenceFormatError, match=message):
        prepare_preferences(path, text_tokenizer, min_gap=1.0)
    rule = PreparationRule(format=FormatRule(max_length=None), skip_bad_rows=True)
    summary = prepare_preferences(path, text_tokenizer, rule, min_gap=1.0)[1]
    assert (summary.kept, summary.dropped) == (4, {"unreadable (row)": 1})


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], {}, r"needs rows of `prompt`, `response` and `score`"),
        (RATED, {"layout": "hh"}, "requires rated or ranked rows, but the layout of 'data' is 'hh'"),
        (RATED, {"min_gap": 9.0}, "two responses to a prompt must have scores that differ by `min_gap=9.0`"),
        (RATED, {"min_gap": -1.0}, "must be 0 or more"),
        (Dataset.from_list(RATED).to_iterable_dataset(), {}, "is a stream. Save the rows to a file"),
    ],
)
def test_a_gap_without_pairs_is_refused_with_the_reason(rows, options, message):
    with pytest.raises(ValueError, match=message):
        as_sources(rows, **{"min_gap": 1.0, **options})


def test_a_weight_from_the_scores_gives_the_scaled_bradley_terry_loss():
    """Differences 1, 4, 3 and 2.5; the mean of -m log sigmoid(reward difference) over the four pairs, by hand."""
    pairs = to_pairs(RATED, weight_from_scores=True, margin_from_scores=True)
    weights = {(pair["chosen"], pair["rejected"]): pair["weight"] for pair in pairs}
    assert weights == {("best", "good"): 1, ("best", "bad"): 4, ("good", "bad"): 3, ("right", "left"): 2.5}
    assert all(pair["weight"] == pair["margin"] for pair in pairs)
    assert "weight" not in to_pairs(RATED)[0]

    rewards = {"best": 1.5, "good": 0.25, "bad": -0.5, "left": 0.75, "right": 0.5}
    given = torch.tensor([[rewards[pair["chosen"]], rewards[pair["rejected"]]] for pair in pairs])
    scaled = [
        weight * math.log1p(math.exp(rewards[worst] - rewards[best])) for (best, worst), weight in weights.items()
    ]
    read = torch.tensor([to_preference_row(pair).weight for pair in pairs])
    ranks = torch.tensor([[0, 1]] * 4)
    loss = PreferenceLoss()
    by_count = loss(given, ranks, weights=read, normalizer=torch.tensor(4.0))
    assert by_count.item() == pytest.approx(sum(scaled) / 4, rel=1e-6)
    assert loss(given, ranks, weights=read).item() == pytest.approx(sum(scaled) / 10.5, rel=1e-6)  # 1 + 4 + 3 + 2.5
