"""Health warnings in real training runs: each kind of problem is logged once, and a healthy run logs none."""

import logging
import math
import random
from typing import Any

import pytest
import torch
from training_runs import load, make_trainer

from hf_reward.training.health_callback import head_norm

WORDS = ["water", "stone", "bread", "river", "lamp", "paper", "cloud", "metal", "garden", "street", "window", "answer"]


def pair(number: int, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": f"Question {number}: ", "chosen": chosen, "rejected": rejected}


def words(count: int, source: random.Random) -> str:
    return " ".join(source.choice(WORDS) for _ in range(count))


def polite_pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    """The chosen response starts with yes and the rejected one with no, independently of length."""
    source = random.Random(start)
    return [
        pair(start + n, f"yes {words(3 + n % 3, source)}", f"no {words(3 + (n + 1) % 3, source)}") for n in range(count)
    ]


def longer_pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    source = random.Random(start + 1)
    return [pair(start + n, words(12, source), words(3, source)) for n in range(count)]


def random_pairs(count: int) -> list[dict[str, Any]]:
    source = random.Random(2)
    return [pair(n, words(4, source), words(4, source)) for n in range(count)]


def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def run(folder: Any, train: Any, tmp_path: Any, *, evaluation: Any = None, **changes: Any) -> Any:
    options: dict[str, Any] = {"learning_rate": 3e-3, "max_steps": 16, "lr_scheduler_type": "constant", "seed": 0}
    model = changes.pop("model", folder)
    trainer = make_trainer(model, train, tmp_path / "run", evaluation=evaluation, **{**options, **changes})
    trainer.train()
    if evaluation is not None:
        trainer.evaluate()
    return trainer


def kinds(trainer: Any) -> list[str]:
    return [warning["kind"] for warning in trainer.health_warnings]


@pytest.fixture
def llama(make_model_folder):
    return make_model_folder("llama")


def test_a_healthy_run_logs_no_warning_and_the_norm_of_the_head(llama, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_reward.training.health_callback"):
        trainer = run(llama, polite_pairs(64), tmp_path, evaluation=polite_pairs(32, 100), max_steps=24, eval_steps=8,
                      eval_strategy="steps", warmup_steps=4)  # fmt: skip
    assert trainer.evaluation["accuracy"] > 0.9  # the run is healthy: it learned
    assert trainer.health_warnings == []
    assert not [record for record in caplog.records if record.name == "hf_reward.training.health_callback"]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["head_norm"] == pytest.approx(float(trainer.model.score.weight.detach().norm()))
    assert head_norm(trainer.model) == pytest.approx(logs[-1]["head_norm"])


def test_a_learning_rate_of_zero_shows_as_collapse_and_a_zero_head(llama, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_reward.training.health_callback"):
        trainer = run(llama, polite_pairs(32), tmp_path, learning_rate=0.0, warmup_steps=3, max_steps=12)
    assert kinds(trainer) == ["reward collapse", "head is zero"]
    assert [warning["step"] for warning in trainer.health_warnings] == [8, 8]  # five logs after the third step
    logged = [record.message for record in caplog.records if record.name == "hf_reward.training.health_callback"]
    assert len(logged) == 2  # once each, although the run continued for four steps
    assert "standard deviation of 0.0e+00" in logged[0]
    assert "Remedy: run `overfit_one_batch`" in logged[0]


def test_labels_without_a_pattern_show_as_the_loss_of_equal_rewards(llama, tmp_path):
    model = load(llama)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight, std=0.001)  # rewards differ so little that 64 rows are conclusive
    trainer = run(llama, random_pairs(64), tmp_path, model=model, learning_rate=1e-7)
    assert kinds(trainer) == ["loss at equal rewards"]
    assert f"it is {math.log(2):.4f}" in trainer.health_warnings[0]["seen"]


@pytest.mark.parametrize(
    ("loss", "equal"), [({"loss_type": "hinge"}, 1.0), ({"loss_type": "rao_kupper", "tie_parameter": 3.0}, math.log(4))]
)
def test_the_loss_of_equal_rewards_is_that_of_the_loss_in_use(llama, tmp_path, loss, equal):
    # Rao-Kupper: P(i preferred) = p_i / (p_i + theta p_j), at equal rewards 1 / (1 + theta).
    model = load(llama)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight, std=0.001)
    trainer = run(llama, random_pairs(32), tmp_path, model=model, learning_rate=1e-7, max_steps=10, **loss)
    assert kinds(trainer) == ["loss at equal rewards"]
    assert f"it is {equal:.4f}" in trainer.health_warnings[0]["seen"]


def test_row_margins_move_the_loss_of_equal_rewards(llama, tmp_path):
    rows = [row | {"margin": 1.0} for row in polite_pairs(32)]
    trainer = run(llama, rows, tmp_path, learning_rate=0.0, max_steps=6)
    expected = math.log(1 + math.e)  # -log sigmoid(0 - 1)
    assert [entry["equal_loss"] for entry in trainer.health._history if "loss" in entry][-1] == pytest.approx(expected)


def test_a_huge_learning_rate_shows_as_growth_divergence_or_explosion(llama, tmp_path):
    head = run(llama, polite_pairs(32), tmp_path, head_learning_rate=5.0, learning_rate=1e-6, max_steps=12)
    assert {"head norm grows", "margin explosion"} <= set(kinds(head))


def test_a_learning_rate_that_diverges_shows_in_the_loss(llama, tmp_path):
    trainer = run(llama, random_pairs(64), tmp_path, learning_rate=0.3, max_steps=12)
    assert "loss far above equal rewards" in kinds(trainer)


def test_a_head_that_learns_too_slowly_lags(llama, tmp_path):
    rates = {"learning_rate": 1e-4, "head_learning_rate": 1e-4}
    assert kinds(run(llama, polite_pairs(64), tmp_path, max_steps=24, **rates))[-1] == "head lags"
    rates["head_learning_rate"] = 2e-2
    assert kinds(run(llama, polite_pairs(64), tmp_path / "faster", max_steps=24, **rates)) == []


def test_swapped_columns_at_evaluation_show_as_accuracy_below_chance(llama, tmp_path):
    trainer = run(llama, polite_pairs(64), tmp_path, evaluation=swapped(polite_pairs(32, 100)), max_steps=24)
    assert kinds(trainer) == ["accuracy below chance"]
    assert "swapped in the evaluation data" in trainer.health_warnings[0]["cause"]


def test_equal_rewards_do_not_count_as_below_chance(llama, tmp_path):
    trainer = run(llama, polite_pairs(32), tmp_path, evaluation=polite_pairs(32, 100), learning_rate=0.0, max_steps=3)
    assert trainer.evaluation["accuracy"] == 0  # strict accuracy: all rewards are tied
    assert kinds(trainer) == []


def test_data_labelled_by_length_show_as_the_length_rule(llama, tmp_path):
    mixed = longer_pairs(36, 100) + swapped(longer_pairs(12, 200))
    trainer = run(llama, longer_pairs(64), tmp_path, evaluation=mixed, max_steps=24)
    assert kinds(trainer) == ["accuracy of the length rule"]
    assert "has 75.0%" in trainer.health_warnings[0]["seen"]  # 36 of 48 prefer the longer one


@pytest.mark.slow
def test_memorised_rows_show_as_overfitting(llama, tmp_path):
    trainer = run(llama, polite_pairs(8), tmp_path, evaluation=polite_pairs(32, 100), max_steps=10)
    assert kinds(trainer) == []
    # The same model continues on the same few rows with swapped labels.
    again = run(llama, swapped(polite_pairs(8)), tmp_path / "again", evaluation=polite_pairs(32, 100),
                model=trainer.model, processing_class=trainer.processing_class, max_steps=40, eval_strategy="steps",
                eval_steps=1)  # fmt: skip
    assert "overfitting" in kinds(again)


@pytest.mark.parametrize("broken_step", [4])
def test_a_non_finite_gradient_names_its_rows_and_so_does_the_next_step(llama, tmp_path, broken_step):
    model = load(llama)
    trainer = make_trainer(model, polite_pairs(64), tmp_path / "run", max_steps=8, learning_rate=1e-3)
    seen: list[list[int]] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(trainer.health.rows)
        return gradient * math.nan if trainer.state.global_step == broken_step - 1 else gradient

    trainer.model.score.weight.register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"were already not finite") as error:
        trainer.train()
    assert kinds(trainer) == ["non-finite gradient"]
    assert trainer.health_warnings[0]["step"] == broken_step
    rows = seen[broken_step - 1]
    assert len(rows) == 8
    assert f"rows of that step are {rows}" in trainer.health_warnings[0]["seen"]
    assert f"rows of the previous step are {rows}" in str(error.value)


def test_health_checks_can_be_switched_off(llama, tmp_path):
    trainer = run(llama, polite_pairs(32), tmp_path, learning_rate=0.0, max_steps=12, health_checks=False)
    assert trainer.health_warnings == []
    assert "head_norm" not in trainer.state.log_history[0]


def test_a_resumed_run_keeps_its_history(llama, tmp_path):
    first = run(llama, polite_pairs(32), tmp_path, learning_rate=0.0, max_steps=4, save_strategy="steps", save_steps=4)
    assert kinds(first) == []  # four logs are too few
    again = make_trainer(
        llama, polite_pairs(32), tmp_path / "run", learning_rate=0.0, max_steps=8, allow_changed_run=True
    )
    again.train(resume_from_checkpoint=True)
    assert again.health_warnings[0] | {"seen": ""} == {**again.health_warnings[0], "kind": "reward collapse", "step": 5,
                                                       "seen": ""}  # fmt: skip
