"""From a tiny model to results: the same numbers after interruptions, and every missing part reported."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_rows import (
    arena,
    biased,
    four,
    instructed,
    judged,
    pair,
    rmb_list,
    rmb_pair,
    solutions,
    styles,
    tied,
    transformed,
    translated,
    verified,
    write_rows,
)
from saved_models import saved_model

from hf_reward import RewardScorer
from hf_reward.data.path_safety import with_shown_model
from hf_reward.evaluation.benchmarks import running
from hf_reward.evaluation.benchmarks.data import DataChoice
from hf_reward.evaluation.benchmarks.registry import NAMES, PUBLIC
from hf_reward.evaluation.benchmarks.reporting import results_from_scores
from hf_reward.evaluation.benchmarks.results import ResultRule, record_for_card
from hf_reward.evaluation.benchmarks.running import run_all, run_benchmark
from hf_reward.publishing.card.render import write_model_card

DATA: dict[str, list[dict[str, Any]]] = {
    "rewardbench": [pair(n, subset=("alpacaeval-easy", "math-prm", "donotanswer")[n % 3]) for n in range(12)],
    "rewardbench2": [four(n) for n in range(8)] + [tied(kind, n) for n in range(3) for kind in ("ref", "tied")],
    "rm_bench": [styles(n, ("chat", "code", "safety-refuse")[n % 3]) for n in range(9)],
    "judgebench": [judged(n, ("A>B", "B>A")[n % 2]) for n in range(10)],
    "rmb": [rmb_pair(n) for n in range(5)] + [rmb_list(n, "Harmlessness", 2 + n % 2) for n in range(5)],
    "llmbar": [instructed(n, 1 + n % 2, ("Natural", "Manual")[n % 2]) for n in range(10)],
    "ppe_preference": [arena(n, ("model_a", "model_b", "tie")[n % 3]) for n in range(12)],
    "ppe_correctness": [verified(n, [True, n % 2 == 0, False, False]) for n in range(8)],
    "m_rewardbench": [translated(n, language) for n in range(6) for language in ("deu_Latn", "zho_Hans")],
    "judgebench_pro": [biased(n, 1 + n % 2, ("math", "code")[n % 2]) for n in range(10)],
    "rewardmath": [row for n in range(4) for row in solutions(n)],
    "rewordbench": [transformed(n, name) for n in range(6) for name in ("original", "add quotes")],
    "pairs": [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(10)],
    "lists": [{"prompt": f"p{n}", "responses": [f"a{n}", f"b{n}", f"c{n}"], "ranks": [1, 0, 2]} for n in range(10)],
}
FAST = ResultRule()


def test_rows_cover_every_benchmark_of_text() -> None:
    assert DATA.keys() == {name for name in NAMES if name not in PUBLIC or not PUBLIC[name].image}


@pytest.fixture
def folder(make_model_folder: Any, tmp_path: Path) -> Path:
    return saved_model(make_model_folder("llama"), tmp_path / "saved")


@pytest.fixture
def scorer(folder: Path) -> RewardScorer:
    return RewardScorer.from_pretrained(folder)


@pytest.mark.parametrize("name", DATA)
def test_every_benchmark_from_model_to_results(name: str, scorer: RewardScorer, tmp_path: Path) -> None:
    results = run_benchmark(name, scorer, DATA[name], out=tmp_path / "out", rule=FAST)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert 0 <= results["overall"] <= 1
    assert results["ci"] is None or results["ci"][0] <= results["overall"] <= results["ci"][1]
    assert results["model"] == Path(scorer.name).name  # no folders of this machine in the results
    assert results["fingerprint"] == with_shown_model(scorer.fingerprint())
    assert results["baselines"].keys() == {"longer response (characters)"}
    assert results["ties"] == round(results["tie_rate"] * results["comparisons"])
    assert results["unscored"]["n"] == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert all(line.keys() == {"id", "rewards", "tokens"} for line in lines)
    assert len(lines) == results["n"]
    again = results_from_scores(name, DATA[name], tmp_path / "out" / "scores.jsonl", rule=FAST)
    assert again == results


def test_rewards_are_in_the_benchmarks_response_order(scorer: RewardScorer, tmp_path: Path) -> None:
    run_benchmark("llmbar", scorer, DATA["llmbar"], out=tmp_path, rule=FAST)
    for row, line in zip(DATA["llmbar"], (tmp_path / "scores.jsonl").read_text().splitlines(), strict=True):
        expected = scorer.score([row["input"]] * 2, [row["output_1"], row["output_2"]])
        assert json.loads(line)["rewards"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_scores_files_of_other_programs_name_no_model(tmp_path: Path) -> None:
    rows = [{"id": f"Natural/{n}", "rewards": [1.0, 0.0]} for n in range(0, 10, 2)]
    rows += [{"id": f"Manual/{n}", "rewards": [1.0, 0.0]} for n in range(1, 10, 2)]
    results = results_from_scores("llmbar", DATA["llmbar"], write_rows(tmp_path / "mine.jsonl", rows), rule=FAST)
    assert results["model"] is None
    assert results["sections"] == {"Natural": 1.0, "Adversarial": 0.0}


# --- partial results ---


def test_missing_subsets_are_named(scorer: RewardScorer, tmp_path: Path) -> None:
    results = run_benchmark("rm_bench", scorer, DATA["rm_bench"], out=tmp_path, rule=FAST)
    assert results["partial"] == [
        "chat (3 rows, published 129)",
        "math",
        "code (3 rows, published 228)",
        "safety-refuse (3 rows, published 284)",
        "safety-response",
    ]
    assert "math" not in results["sections"]


def test_chosen_subsets_make_a_partial_result(scorer: RewardScorer, tmp_path: Path) -> None:
    choice = DataChoice(data=DATA["llmbar"], subsets=["Manual"])
    results = run_benchmark("llmbar", scorer, out=tmp_path, choice=choice, rule=FAST)
    assert results["n"] == 5
    assert results["partial"][0] == "Natural"
    assert list(results["sections"]) == ["Adversarial"]


def test_a_section_that_the_original_code_prints_as_0_is_noted(scorer: RewardScorer, tmp_path: Path) -> None:
    results = run_benchmark("rewardbench", scorer, DATA["rewardbench"], out=tmp_path, rule=FAST)
    assert "Chat Hard" in results["notes"][0]
    assert "Chat Hard" not in results["sections"]


def test_too_long_rows_are_counted_and_a_higher_limit_scores_them(folder: Path, tmp_path: Path) -> None:
    data = [*DATA["llmbar"], instructed(11, output_1="word " * 120)]
    results = run_benchmark("llmbar", folder, data, out=tmp_path / "short", rule=FAST, max_length=64)
    assert results["unscored"]["n"] == 1
    assert "Natural/11" in results["unscored"]["first"]
    assert "could not be scored" in results["partial"][-1]
    line = (tmp_path / "short" / "scores.jsonl").read_text().splitlines()[-1]
    assert json.loads(line)["problem"]
    longer = run_benchmark("llmbar", folder, data, out=tmp_path / "long", rule=FAST)
    assert longer["unscored"]["n"] == 0
    assert longer["n"] == results["n"] + 1


# --- resuming ---


def test_a_finished_run_is_not_scored_again(
    scorer: RewardScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_benchmark("llmbar", scorer, DATA["llmbar"], out=tmp_path, rule=FAST)
    monkeypatch.setattr(scorer, "score_encoded", lambda *_, **__: pytest.fail("scored again"))
    assert run_benchmark("llmbar", scorer, DATA["llmbar"], out=tmp_path, rule=FAST) == first


def test_an_interrupted_run_resumes_bit_identically(
    scorer: RewardScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_CHUNK_RESPONSES", 8)
    complete = run_benchmark("rm_bench", scorer, DATA["rm_bench"], out=tmp_path / "complete", rule=FAST)
    calls = []
    score = scorer.score_encoded

    def stop_at_third(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(*arguments, **options)

    monkeypatch.setattr(scorer, "score_encoded", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark("rm_bench", scorer, DATA["rm_bench"], out=tmp_path / "cut", rule=FAST)
    scores = tmp_path / "cut" / "scores.jsonl"
    assert len(scores.read_text().splitlines()) == 2
    with scores.open("a") as file:
        file.write('{"id": "safety-refuse/2", "rew')  # as after a kill during a write
    resumed = run_benchmark("rm_bench", scorer, DATA["rm_bench"], out=tmp_path / "cut", rule=FAST)
    assert len(calls) == 3 + 7
    assert resumed == complete
    assert scores.read_text() == (tmp_path / "complete" / "scores.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_process_resumes(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "llmbar.jsonl", [instructed(n, output_1="word " * 60) for n in range(400)])
    program = (
        "import sys; from hf_reward.evaluation.benchmarks import running; running._CHUNK_RESPONSES = 8; "
        "running.run_benchmark('llmbar', sys.argv[1], sys.argv[2], out=sys.argv[3])"
    )
    command = [sys.executable, "-c", program, str(folder), str(data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, str(tmp_path / "cut")], env=environment)
    scores = tmp_path / "cut" / "scores.jsonl"
    deadline = time.monotonic() + 120
    while not (scores.exists() and scores.read_text().count("\n") >= 20):
        assert process.poll() is None, "it was over before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "results.json").exists()
    before = scores.read_text().count("\n")
    assert 20 <= before < 400
    for out in ("cut", "complete"):
        subprocess.run([*command, str(tmp_path / out)], check=True, env=environment)
    assert scores.read_text() == (tmp_path / "complete" / "scores.jsonl").read_text()
    assert (tmp_path / "cut" / "results.json").read_text() == (tmp_path / "complete" / "results.json").read_text()


def test_scores_of_another_model_or_other_data_are_not_mixed(
    scorer: RewardScorer, make_model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_benchmark("llmbar", scorer, DATA["llmbar"], out=out, rule=FAST)
    other = RewardScorer.from_pretrained(saved_model(make_model_folder("llama", "b"), tmp_path / "other", seed=5))
    with pytest.raises(FileExistsError, match=r"has scores of a different run \(different weights"):
        run_benchmark("llmbar", other, DATA["llmbar"], out=out, rule=FAST)
    with pytest.raises(FileExistsError, match="different data_hash"):
        run_benchmark("llmbar", scorer, DATA["llmbar"][:4], out=out, rule=FAST)
    with pytest.raises(FileExistsError, match="different benchmark"):
        run_benchmark("pairs", scorer, DATA["pairs"], out=out, rule=FAST)
    moved = RewardScorer.from_pretrained(shutil.copytree(scorer.name, tmp_path / "moved"))
    monkeypatch.setattr(moved, "score_encoded", None)  # the same weights under another name: nothing is scored again
    run_benchmark("llmbar", moved, DATA["llmbar"], out=out, rule=FAST)
    replaced = run_benchmark("llmbar", other, DATA["llmbar"], out=out, rule=FAST, overwrite=True)
    assert replaced["model"] == Path(other.name).name


def test_loading_options_are_for_models_that_are_loaded(scorer: RewardScorer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_length cannot be set for a scorer"):
        run_benchmark("llmbar", scorer, DATA["llmbar"], out=tmp_path, max_length=10)


# --- all ---


def test_all_runs_the_available_benchmarks_and_reports_the_others(scorer: RewardScorer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_rows(data / "llmbar.jsonl", DATA["llmbar"])
    write_rows(data / "rm_bench" / "rows.jsonl", DATA["rm_bench"])
    write_rows(data / "judgebench.jsonl", [{"pair_id": "1"}])
    found = run_all(scorer, out=tmp_path / "out", data=data, rule=FAST)
    assert [each["benchmark"] for each in found.results] == ["rm_bench", "llmbar"]
    assert found.skipped.keys() == PUBLIC.keys() - {"rm_bench", "llmbar"}
    assert "lacks the columns" in found.skipped["judgebench"]
    assert "could not be read from the Hub" in found.skipped["rewardbench"]
    assert json.loads((tmp_path / "out" / "benchmark_results.json").read_text()) == found.results
    alone = run_benchmark("llmbar", scorer, data / "llmbar.jsonl", out=tmp_path / "alone", rule=FAST)
    assert alone == found.results[1]


def test_all_without_data_loads_no_model(tmp_path: Path) -> None:
    found = run_all(tmp_path / "no model", out=tmp_path / "out")
    assert found.results == []
    assert found.skipped.keys() == PUBLIC.keys()
    with pytest.raises(ValueError, match="`data` names rmbench"):
        run_all(tmp_path, out=tmp_path, data={"rmbench": "x"})
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        run_all(tmp_path, out=tmp_path, data=tmp_path / "nowhere")


# --- the card ---


def test_a_card_shows_what_was_recorded(scorer: RewardScorer, folder: Path, tmp_path: Path) -> None:
    results = run_benchmark("llmbar", scorer, DATA["llmbar"], out=tmp_path / "a", rule=FAST)
    record_for_card(folder, [results])
    record_for_card(folder, [results, {"benchmark": "other", "overall": 0.5}])
    assert [each["benchmark"] for each in json.loads((folder / "benchmark_results.json").read_text())] == [
        "llmbar",
        "other",
    ]
    assert scorer.record is not None
    card = write_model_card(folder, scorer.record).read_text()
    assert f"llmbar (partial) | {results['overall']:.1%}" in card
    assert "longer response (characters)" in card
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        record_for_card(tmp_path / "nowhere", [results])
    (folder / "benchmark_results.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        record_for_card(folder, [results])


def test_half_credit_and_ties_of_a_constant_model(tmp_path: Path) -> None:
    rows = [{"id": f"{row['subset']}/{row['idx']}", "rewards": [1.0, 1.0]} for row in DATA["llmbar"]]
    results = results_from_scores("llmbar", DATA["llmbar"], write_rows(tmp_path / "s.jsonl", rows), rule=FAST)
    assert (results["overall"], results["overall_half_credit"], results["tie_rate"]) == (0.0, 0.5, 1.0)
    assert results["ci"] == pytest.approx([0.0, 0.3385], abs=1e-3)  # Wilson for 0 of 10, with t of 9
    assert np.isfinite(results["ci"]).all()
