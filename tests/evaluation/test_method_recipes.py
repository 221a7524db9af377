"""The studies of docs/guides/methods.md: paired runs that resume, hand-computed measures, and sound selections."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import ablation
import ablation_variants
import caution
import label_noise
import loss_ablation
import numpy as np
import pytest
import torch

from hf_reward.losses.functions import bradley_terry_loss


def pooled(gaps: list[float], longer: list[int], off_topic: list[float], changes: list[list[float]]) -> ablation.Pooled:
    groups = [f"g{place // 2}" for place in range(len(gaps))]
    run = {"gaps": gaps, "groups": groups, "length_gaps": longer, "off_topic_gaps": off_topic, "changes": changes}
    return ablation.pool([run])


def test_measures_by_hand():
    """Accuracy 3/4; longer preferred 2/2 right, shorter 1/2; median |gap| 2, so the edits change 0.5 and 1.5 of it."""
    found = pooled([2.0, 2.0, -1.0, 3.0], [5, 1, -2, -4], [1.0, -1.0], [[0, -1.0], [2, 3.0]])
    value = {name: of(found) for name, of in ablation.MEASURES.items()}
    assert value["accuracy"] == 0.75
    assert value["length-balanced"] == pytest.approx((1 + 0.5) / 2)
    assert value["off-topic"] == 0.5
    assert value["edit effect"] == pytest.approx((0.5 + 1.5) / 2)
    assert value["log loss"] == pytest.approx(np.mean(np.log1p(np.exp([-2.0, -2.0, 1.0, -3.0]))))
    left = found.without("g0")
    assert (left.gaps.tolist(), left.off_topic.tolist(), left.changes.tolist()) == ([-1.0, 3.0], [], [1.5])


def test_variants_change_rows_without_changing_the_given_ones():
    rows = [
        {"prompt": f"q{n}", "chosen": f"First {n}. Then {n}.", "rejected": f"No {n}. Not {n}.", "gap": float(n + 1)}
        for n in range(8)
    ]
    before = json.dumps(rows)
    assert [row["weight"] for row in ablation_variants.scaled(rows, 0)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert np.mean([row["margin"] for row in ablation_variants.with_margins(rows, 0)]) == pytest.approx(1)
    flipped = ablation_variants.flipped(0.25)(rows, 0)
    assert sum(new["chosen"] == old["rejected"] for new, old in zip(flipped, rows, strict=True)) == 2
    ties = ablation_variants.neutral_pairs(0.5)(rows, 0)[8:]
    assert len(ties) == 4
    assert all(row["probability"] == 0.5 and row["chosen"] != row["rejected"] for row in ties)
    assert len(ablation_variants.off_prompt(0.25, 0.25)(rows, 0)) == 12
    assert json.dumps(rows) == before
    voted = [{"votes_chosen": 3, "votes_rejected": 1, "votes_equal": 1}]
    assert ablation_variants.vote_shares(voted, 0)[0]["probability"] == pytest.approx(0.7)
    assert ablation_variants.gap_of(voted[0]) == 2


def test_the_consistency_loss_replaces_only_neutral_pairs():
    rewards, ranks = torch.tensor([[1.0, -0.5], [2.0, 0.5]]), torch.tensor([[0, 1], [0, 0]])
    probabilities = torch.tensor([float("nan"), 0.5])
    losses, weights = ablation_variants.ConsistencyLoss(consistency=2.0).of_groups(
        rewards, ranks, probabilities=probabilities
    )
    assert losses[0] == bradley_terry_loss(rewards[:1], ranks[:1])[0]
    assert losses[1] == pytest.approx(2 * 1.5)
    assert weights.tolist() == [1, 1]


@pytest.mark.slow
def test_an_ablation_resumes_and_compares_equal_runs_as_equal(make_model_folder, tmp_path, capsys):
    """About 15 s."""
    rows = [
        {
            "prompt": f"Which {n % 9}?",
            "chosen": f"A good answer {n}. It is long.",
            "rejected": f"No {n * 7 % 5}" + " and so on" * (4 * (n % 2)),
            "gap": 1 + n % 2,
        }
        for n in range(54)
    ]
    data, out = tmp_path / "pairs.jsonl", tmp_path / "runs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--base", make_model_folder("llama"), "--data", data, "--out", out, "--layers", "1", "--train_rows", "16"]
    words = [str(word) for word in [*words, "--eval_rows", "12", "--edited_rows", "12", "--folds", "0"]]
    ablation.main([*words, "--variants", "plain", "scaled", "consistency"])
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(each["variant"], each["train_rows"]) for each in found] == [
        ("plain", 16),
        ("scaled", 16),
        ("consistency", 24),
    ]
    assert found[0]["groups"] == found[1]["groups"] == found[2]["groups"]
    assert found[0]["gaps"] != found[1]["gaps"]
    assert len(found[0]["gaps"]) == 12
    capsys.readouterr()
    ablation.main([*words, "--variants", "plain"])
    assert len(out.read_text(encoding="utf-8").splitlines()) == 3
    assert "fold 0:" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        ablation.main([*words, "--learning_rate", "1"])
    again = ablation.pool(found[:1])
    assert ablation.compared(again, again)[0].endswith("+0.000 (+0.000 to +0.000)")


def test_unusual_features_have_larger_errors_and_distances():
    torch.manual_seed(0)
    known, new, far = torch.randn(400, 16), torch.randn(100, 16), 4 * torch.randn(100, 16)
    for of in (lambda x: caution.distillation_error(known, x, 0), lambda x: caution.distance(known, x)):
        usual, unusual = of(new), of(far)
        assert (unusual.median() > usual.quantile(0.99)).item()


def test_linear_heads_learn_a_planted_direction():
    random = np.random.default_rng(0)
    features = torch.tensor(random.normal(size=(60, 4, 8)), dtype=torch.float32)
    gold = (features[..., 0] > 0).numpy().astype(float)
    options = Namespace(seed=0, heads=3, weight_decay=1e-3)
    heads = caution.fit_heads(features, gold, options)
    assert heads.shape == (8, 3)
    assert (heads[0] > 3 * heads[1:].abs().amax(0)).all()
    assert not torch.equal(heads[:, 0], heads[:, 1])  # each on its own resample


def test_selections_by_hand():
    """The reward selects the bad second response; its spread and its error are large, so both corrections reject it."""
    shape = (120, 2)
    mean = np.broadcast_to([1.0, 1.5], shape)
    large = np.broadcast_to([0.0, 1.0], shape)
    gold = np.broadcast_to([1.0, 0.0], shape)
    found = caution.report(caution.Scores(mean, large, large, large), gold, np.arange(120), 2)["selected"]
    assert found["reward"]["score"] == 0
    assert found["random"]["score"] == 0.5
    for way in ("lower bound, beta 1", "caution, lambda 1", "distance, lambda 1"):
        assert found[way]["minus reward"][0] == 1
        assert found[way]["minus lower bound"][0] == 0
    assert found["caution, lambda 0.25"]["score"] == 0


def test_planted_responses_are_bad_and_from_other_questions():
    rows: list[dict[str, Any]] = [
        {"question": f"q{n}", "responses": [f"a {n} b c d", f"e {n} f g h"], "scores": [1, 0], "group": n // 2}
        for n in range(6)
    ]
    for number, row in enumerate(caution.plant(rows, 0)):
        assert row["scores"] == [1, 0, 0, 0, 0, 0]
        assert all(int(text.split()[1]) // 2 != number // 2 for text in row["responses"][2:4])
        assert sorted(row["responses"][4].split()) in [sorted(text.split()) for text in rows[number]["responses"]]
        assert row["responses"][5] == f"q{number}"


def test_the_share_of_votes_is_that_of_the_label():
    row = {"votes_chosen": 4, "votes_rejected": 1}
    assert label_noise.vote_share(row, False) == 0.8
    assert label_noise.vote_share(row, True) == pytest.approx(0.2)


@pytest.mark.slow
def test_a_loss_ablation_holds_out_every_pair_once_and_compares_with_the_right_reference(make_model_folder, tmp_path):
    """About 10 s."""
    rows = [
        {
            "prompt": f"Which {n % 12}?",
            "chosen": f"A good answer {n}",
            "rejected": f"No {n * 7 % 5}" + " and so on" * (n % 2),
            "votes_chosen": 3 + n % 3,
            "votes_rejected": 1,
        }
        for n in range(72)
    ]
    data, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--base", make_model_folder("llama"), "--data", data, "--out", out, "--layers", "1", "--variants"]
    names = ["plain", "scaled", loss_ablation.FLIPPED, f"{loss_ablation.FLIPPED}{loss_ablation.CHOSEN}"]
    loss_ablation.main([*map(str, words), *names])
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(found) == set(names)
    for name in names:
        assert sorted(group for run in found[name] for group in run["groups"]) == sorted(row["prompt"] for row in rows)
        assert not set(found[name][0]["groups"]) & set(found[name][1]["groups"])
    assert found["plain"][0]["gaps"] != found[loss_ablation.FLIPPED][0]["gaps"]
    assert {run["chosen"]["label smoothing"] for run in found["plain"]} == {0.0}
    with pytest.raises(SystemExit):  # without the reference
        loss_ablation.main([*map(str, words), "scaled"])


def test_a_linear_fit_solves_the_penalised_loss():
    """At the minimum, the gradient of mean(-log sigmoid(x h)) + decay mean(h^2) / 2 is 0."""
    random = np.random.default_rng(0)
    gaps = torch.tensor(random.normal([1, 0, 0], 1, size=(200, 3)), dtype=torch.float32)
    head = loss_ablation.fit(gaps, [{} for _ in range(200)], 0.1, 0.0)
    gradient = -(torch.sigmoid(-gaps @ head)[:, None] * gaps).mean(0) + 0.1 * head / 3
    assert gradient.abs().max() < 1e-4
    weighted = loss_ablation.fit(gaps, [{"weight": float(n < 50)} for n in range(200)], 0.1, 0.0)
    alone = loss_ablation.fit(gaps[:50], [{} for _ in range(50)], 0.1, 0.0)
    assert torch.allclose(weighted, alone, atol=1e-3)


def write(file: Path, rows: list[dict[str, Any]]) -> Namespace:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return caution.read_options(["--base", "b", "--data", str(file), "--out", str(file.parent), "--group_ends_at", "_"])


def test_questions_of_three_kinds_have_scores_by_hand(tmp_path):
    """Feedback: the first beats all; 2 and 3 tie; both beat the fourth. Pairs: each text has one pair."""
    solved = {
        f"{size}_{way}": {"solution": f"{size} {way}", "is_correct": size == "6b"}
        for size in ("6b", "175b")
        for way in ("finetuning", "verification")
    }
    [row] = caution.read_questions(write(tmp_path / "g.jsonl", [{"question": "q", "ground_truth": "t", **solved}]))
    assert row["scores"] == [1, 1, 0, 0]
    assert row["responses"][0] == "6b finetuning"
    answers = {f"prediction {n}": f"answer {n}" for n in (1, 2, 3, 4)}
    feedback = {"question": "q", "passages": [["T", "One.", "Two."]], **answers}
    rows = [feedback | {"preference": [1, 1, 1, 0, 1, 1]}, feedback | {"preference": [0] * 6}]
    [row] = caution.read_questions(write(tmp_path / "f.jsonl", rows))  # a row of ties only has no quality
    assert row["scores"] == pytest.approx([1, 0.5, 0.5, 0])
    assert row["prompt"] == "T: One. Two.\n\nQuestion: q"
    pairs = [{"prompt": "p", "chosen": f"good {n}", "rejected": f"bad {n}", "group": "a_b"} for n in range(4)]
    sets = caution.read_questions(write(tmp_path / "p.jsonl", pairs))
    assert len(sets) == 2
    assert {text for each in sets for text in each["responses"]} == {
        f"{k} {n}" for k in ("good", "bad") for n in range(4)
    }
    for each in sets:
        assert each["scores"] == [float(text.startswith("good")) for text in each["responses"]]
        assert each["group"] == "a"


@pytest.mark.slow
def test_a_caution_study_runs_and_keeps_its_features(make_model_folder, tmp_path, capsys):
    """About 10 s."""
    pairs = [
        {"prompt": f"p{n % 12}", "chosen": f"good {n} one two", "rejected": f"bad {n} three", "group": f"p{n % 12}_x"}
        for n in range(48)
    ]
    file = tmp_path / "pairs.jsonl"
    write(file, pairs)
    words = ["--base", str(make_model_folder("llama")), "--data", str(file), "--out", str(tmp_path / "out"), "--plant"]
    caution.main([*words, "--layers", "1"])
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(found) == {"all", "given"}
    assert found["given"]["selected"]["random"]["score"] == pytest.approx(0.5, abs=0.1)
    assert found["all"]["selected"]["random"]["score"] < found["given"]["selected"]["random"]["score"]
    assert "12 groups" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="different settings"):
        caution.main([*words, "--layers", "2"])
