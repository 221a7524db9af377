"""The benchmark measures correctly: both sides get the same rows, and tokens are counted as documented."""

import json
import sys
from importlib import import_module
from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_reward import RewardConfig

sys.path.append(str(Path(__file__).parents[2] / "tests" / "performance"))
rows = import_module("speed_rows")
measure = import_module("speed_measure")
training = import_module("speed_training")
speed = import_module("speed")

pytestmark = pytest.mark.slow


def synthetic(lengths, count, **changes):
    return rows.synthetic_groups(lengths, count, **{"max_length": 512, "vocabulary": 4096, **changes})


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [rows.HH_LIKE, rows.LONG_RESPONSES, rows.LISTS])
def test_synthetic_rows_have_the_documented_means(lengths):
    groups = synthetic(lengths, 400, max_length=100_000)
    found = rows.describe(groups)
    stated = [lengths.prefix.mean, *(part.mean for part in lengths.responses)]
    assert [found["prefix"], *found["responses"]] == pytest.approx(stated, rel=0.1)


def test_hh_like_rows_have_the_documented_quantiles_and_padding():
    groups = synthetic(rows.HH_LIKE, 2000, max_length=100_000)
    quantiles = np.quantile([group.prefix_length for group in groups], [0.1, 0.5, 0.9])
    assert quantiles == pytest.approx([19, 98, 273], rel=0.1)
    assert rows.describe(groups)["padded_to_existing"] == pytest.approx(3.9, rel=0.1)


def test_small_samples_have_nearly_the_documented_means():
    found = rows.describe(synthetic(rows.HH_LIKE, 24, max_length=100_000))
    assert [found["prefix"], *found["responses"]] == pytest.approx([125, 40, 50], rel=0.15)


def test_no_row_is_over_length_and_the_seed_determines_the_rows():
    groups = synthetic(rows.LONG_RESPONSES, 40, max_length=300)
    assert len(groups) == 40
    assert max(len(ids) for group in groups for ids in group.responses) <= 300
    assert min(token for group in groups for ids in group.responses for token in ids) >= 3  # never the pad token
    assert groups == synthetic(rows.LONG_RESPONSES, 40, max_length=300)
    assert groups != synthetic(rows.LONG_RESPONSES, 40, max_length=300, seed=1)
    with pytest.raises(ValueError, match="nearly all rows"):
        synthetic(rows.LONG_RESPONSES, 40, max_length=30)


@pytest.mark.parametrize(
    ("responses", "prefix", "useful"),
    [
        ([[5, 6, 7], [5, 6, 8, 9]], 2, 5),
        ([[5, 6], [5, 6, 7]], 1, 4),  # each keeps a separate last token
        ([[5, 6], [7, 8]], 0, 4),
        ([[5, 6, 7], [5, 6, 8], [5, 9]], 1, 6),
    ],
)
def test_shared_tokens_count_once(responses, prefix, useful):
    group = rows.Group(responses)
    assert (group.prefix_length, group.useful_tokens) == (prefix, useful)


def test_text_rows_become_groups_of_the_tokenizers_ids(text_tokenizer, text_pairs):
    limits = {"tokenizer": text_tokenizer, "max_length": 512}
    groups = rows.groups_of_text(text_pairs, 8, vocabulary=len(text_tokenizer), **limits)
    chosen = {row["prompt"] + row["chosen"] + text_tokenizer.eos_token for row in text_pairs}
    assert {text_tokenizer.decode(group.responses[0]) for group in groups} <= chosen
    with pytest.raises(ValueError, match="embeddings"):
        rows.groups_of_text(text_pairs, 8, vocabulary=50, **limits)
    with pytest.raises(ValueError, match="40 rows"):
        rows.groups_of_text(text_pairs, 40, vocabulary=len(text_tokenizer), **limits)


# --- both sides ------------------------------------------------------------------------------------------------------


def test_both_sides_get_the_same_pairs_in_the_same_order():
    warm_up, counted = synthetic(rows.HH_LIKE, 8), synthetic(rows.HH_LIKE, 16, seed=1)
    trl, ours = rows.trl_dataset(warm_up, counted), rows.our_dataset(warm_up, counted)
    assert [[row["chosen_ids"], row["rejected_ids"]] for row in trl] == ours["input_ids"][:]
    assert len(trl) == 24
    assert all(ranks == [0, 1] for ranks in ours["ranks"])


def test_trl_gets_all_six_pairs_of_each_list_in_order():
    warm_up, counted = synthetic(rows.LISTS, 8), synthetic(rows.LISTS, 8, seed=1)
    trl, ours = rows.trl_dataset(warm_up, counted), rows.our_dataset(warm_up, counted)
    assert all(ranks == [0, 1, 2, 3] for ranks in ours["ranks"])
    assert len(trl) == 8 + 48  # one warm-up step, then the counted lists, all of them
    for number, group in enumerate(counted):
        best, second, third, worst = group.responses
        pairs = [(row["chosen_ids"], row["rejected_ids"]) for row in trl.select(range(8 + 6 * number, 14 + 6 * number))]
        assert pairs == [(best, second), (best, third), (best, worst), (second, third), (second, worst), (third, worst)]
        assert ours[8 + number]["input_ids"] == group.responses


# --- the complete benchmark ------------------------------------------------------------------------------------------


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_tiny_benchmark_counts_tokens_as_documented(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl")
    # In this process, because starting twelve processes would take two minutes.
    monkeypatch.setattr(training, "in_own_process", lambda _, task, /, **values: measure.TASKS[task](**values))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(measure.matmul_rate, "__defaults__", (0.01,))
    command = "speed train --geometry tiny --cases a,c,d --steps 1 --rounds 1 --json"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(tmp_path / "speed.json")])
    speed.main()
    report = json.loads((tmp_path / "speed.json").read_text())
    assert set(report) == {"machine", "settings", "operations", "rows", "measurements"}
    assert all(len(row["matmul_flops"]) == 2 for row in report["measurements"])
    found = {(row["case"], row["side"]): row for row in report["measurements"]}
    assert set(found) == {(case, side) for case in ("a", "a+ckpt", "c", "d") for side in training.SIDES}
    for row in found.values():
        assert min(row["seconds"]) > 0
        assert row["peak_bytes"] > 0
        assert training.rate(row, slice(None)) > 0
    for case, steps in {"a": (1, 1), "a+ckpt": (1, 1), "c": (6, 1), "d": (5, 5)}.items():
        trl, ours = found[case, "TRL"], found[case, "hf_reward"]
        assert (len(trl["seconds"]), len(ours["seconds"])) == steps
        assert (trl["pairs"], trl["useful_tokens"]) == (ours["pairs"], ours["useful_tokens"])
        assert sum(trl["tokens_computed"]) > trl["useful_tokens"]
        if case != "d":
            assert sum(ours["tokens_computed"]) == ours["useful_tokens"]
    assert found["c", "TRL"]["pairs"] == 48
    first, *later = found["d", "hf_reward"]["tokens_computed"]
    assert first >= found["d", "hf_reward"]["useful_tokens"] / 5  # the first epoch includes the computation of features
    if "cache_features" in RewardConfig.__dataclass_fields__:
        assert not any(later)
    printed = capsys.readouterr().out
    assert "d epochs 2-5" in printed
    assert "ours / TRL" in printed


def test_variants_are_compared_with_the_same_steps_of_hf_reward():
    def row(side, *seconds):
        return {"side": side, "seconds": list(seconds), "cpu_seconds": [2 * each for each in seconds]}

    rows_of_sides = [row("TRL", 9, 9), row("hf_reward", 1, 10), row("before", 2, 20), row("hf_reward", 1, 10)]
    rows_of_sides += [row("before", 2, 20), {"side": "compiled", "error": "failed"}]
    lines = training.variant_lines(rows_of_sides, slice(None))
    assert lines == ["before / hf_reward: time 2.00 (2.00 to 2.00), processor time 2.00 (2.00 to 2.00)"]
    mean, low, high = training.paired_ratio([1.0, 4.0], [1.0, 1.0])  # logs 0 and ln 4: mean ln 2, standard error ln 2
    assert mean == pytest.approx(2)
    assert (low, high) == pytest.approx((2 ** (1 - 12.7062), 2 ** (1 + 12.7062)), rel=1e-4)
    assert np.isnan(training.paired_ratio([1.0], [1.0])[1])


def test_another_checkout_and_other_settings_are_measured(tmp_path, monkeypatch, capsys):
    def in_this_process(_, task, checkout=None, /, **values):
        checkouts.extend([checkout] if task == "train" else [])
        return measure.TASKS[task](**values)

    checkouts: list[Path | None] = []
    monkeypatch.setattr(training, "in_own_process", in_this_process)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(measure.matmul_rate, "__defaults__", (0.01,))
    checkout = Path(__file__).parents[2]
    command = "speed train --geometry tiny --cases a --steps 1 --rounds 1 --sides hf_reward before bf16 --before"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(checkout), "--json", str(tmp_path / "speed.json")])
    speed.main()
    found = json.loads((tmp_path / "speed.json").read_text())["measurements"]
    assert [(row["case"], row["side"], "error" in row) for row in found] == [
        (case, side, False) for case in ("a", "a+ckpt") for side in ("hf_reward", "before", "bf16")
    ]
    assert checkouts == [None, checkout, None] * 2
    assert all(row["start_up_seconds"] > 0 for row in found)
    assert len({tuple(row["tokens_computed"]) for row in found}) == 1
    printed = capsys.readouterr().out
    assert "a: before / hf_reward: time" in printed
    assert "a: start-up hf_reward" in printed
    monkeypatch.setattr(sys, "argv", command.split()[:-1])
    with pytest.raises(SystemExit, match="need each other"):
        speed.main()


@pytest.mark.extended  # 40 s
def test_a_measurement_runs_in_a_separate_process_and_can_fail(tmp_path):
    built = training.in_own_process(str(tmp_path), "build", Path(), geometry="tiny", folder=str(tmp_path))
    assert built["parameters"] > 0
    failed = training.in_own_process(str(tmp_path), "build", geometry="unknown", folder=str(tmp_path))
    assert failed == {"error": "KeyError: 'unknown'"}
    assert training.training_cells([failed], slice(None), 1.0, None, None) == ["failed: KeyError: 'unknown'", *"------"]


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_best_of_n_texts_have_the_documented_lengths():
    scoring = import_module("speed_scoring")
    tokenizer = rows.small_tokenizer(rows.synthetic_rows(200))
    prompts, answers, lengths = scoring.best_of_n_texts(tokenizer, 24, 16)
    assert [len(row) for row in answers] == [16] * 24
    assert lengths["prompt"] == pytest.approx(125, rel=0.1)
    assert lengths["answer"] == pytest.approx(45, rel=0.1)
    counted = np.mean([len(tokenizer(text)["input_ids"]) for text in prompts])
    assert counted == pytest.approx(lengths["prompt"], rel=0.1)


def test_tiny_scoring_benchmark_compares_rewards(tmp_path, monkeypatch, capsys):
    words = ["speed.py", "score", "--geometry", "tiny", "--prompts", "2", "--answers", "3", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(tmp_path / "score.json")])
    speed.main()
    found = json.loads((tmp_path / "score.json").read_text())
    assert found["rows"] == 6
    assert {name: len(times) for name, times in found["seconds"].items()} == {"TRL": 1, "pipeline": 1, "hf_reward": 1}
    assert 0 < max(found["largest_difference"].values()) < 1e-4
    assert "speed-up of hf_reward" in " ".join(capsys.readouterr().out.split())
