"""Evaluations on the console as a short table, while loggers get every metric; token counts as in TRL."""

from typing import Any

import pytest
from test_trainer_evaluation import of_lengths
from training_runs import make_trainer
from transformers import PrinterCallback, TrainerCallback

from hf_reward.training.evaluation_table import evaluation_table

SPLIT: dict[str, Any] = {
    "eval_loss": 0.58912,
    "eval_accuracy": 0.712,
    "eval_accuracy_ci_low": 0.66,
    "eval_accuracy_ci_high": 0.761,
    "eval_margin": 1.2345,
    "eval_length_baseline": 0.52,
    "eval_length_baseline_words": 0.31,
    "eval_length_baseline_strongest": 0.69,
    "eval_accuracy_over_length": 0.022,
    "eval_accuracy_over_length_ci_low": -0.01,
    "eval_accuracy_over_length_ci_high": 0.05,
    "eval_num_pairs": 1000.0,
    "eval_num_prompts": 800,
    "eval_brier_score": 0.2,
    "eval_runtime": 3.0,
    "epoch": 0.5,
}
SOURCE = {
    "eval_hh_accuracy": 1.0,
    "eval_hh_accuracy_ci_low": 0.9,
    "eval_hh_accuracy_ci_high": 1.0,
    "eval_hh_num_pairs": 9,
    "eval_hh_length_baseline": float("nan"),
}


class Collected(TrainerCallback):
    """Records the entries that loggers get."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_the_table_is_aligned_and_has_a_line_for_each_source():
    assert evaluation_table(SPLIT | SOURCE) == (
        "Evaluation at epoch 0.50\n"
        "           loss  accuracy     95% interval  margin  length rule  pairs  prompts\n"
        "eval     0.5891     71.2%   66.0% to 76.1%    1.23        69.0%   1000      800\n"
        "eval_hh       -    100.0%  90.0% to 100.0%       -            -      9        -\n"
        'eval: not shown to be above the length baseline (+2.2% over "shorter in words", 95% interval -1.0% to +5.0%).'
    )


def test_notes_name_few_prompts_but_not_the_significant_baselines():
    above = SPLIT | {"eval_accuracy_over_length_ci_low": 0.01}
    assert evaluation_table(above).splitlines()[3:] == []
    chance = above | {"eval_accuracy_ci_low": 0.48, "eval_num_prompts": 19}
    assert evaluation_table(chance).splitlines()[3:] == [
        "eval: not shown to be above chance; fewer than 20 prompts, too few for a verdict."
    ]


def test_entries_without_an_evaluation_give_no_table():
    assert evaluation_table({"loss": 0.5, "accuracy": 0.7}) is None
    assert evaluation_table({}) is None


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_the_console_shows_the_table_and_loggers_get_every_metric(make_model_folder, tmp_path, capsys, disable_tqdm):
    seen = Collected()
    trainer = make_trainer(
        make_model_folder("llama"), of_lengths(8), tmp_path / "run", evaluation=of_lengths(6), max_steps=1,
        eval_strategy="steps", eval_steps=1, disable_tqdm=disable_tqdm, callbacks=[seen],
    )  # fmt: skip
    trainer.train()
    shown = "".join(capsys.readouterr())
    assert "Evaluation at epoch" in shown
    assert "eval_brier_score" not in shown
    assert "'loss'" in shown, "training entries are shown as before"
    logged = next(logs for logs in seen.logs if "eval_loss" in logs)
    assert {"eval_brier_score", "eval_runtime", "eval_accuracy_half_credit"} <= logged.keys()
    trainer.remove_callback(PrinterCallback)
    trainer.evaluate()
    assert disable_tqdm is False or "Evaluation" not in capsys.readouterr().out


@pytest.mark.parametrize("packing", ["false", "auto"])
def test_tokens_are_counted_over_the_run_like_in_trl(make_model_folder, tmp_path, packing):
    def trainer() -> Any:
        return make_trainer(
            make_model_folder("llama"), of_lengths(8), tmp_path / packing, packing=packing, save_strategy="steps",
            per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=2, save_steps=1,
        )  # fmt: skip

    complete = trainer()
    complete.train()
    tokens = sum(len(ids) for row in complete.train_dataset["input_ids"] for ids in row)
    counted = [entry["num_tokens"] for entry in complete.state.log_history if "num_tokens" in entry]
    assert counted == [tokens, 2 * tokens]
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / packing / "checkpoint-1"))
    assert [entry["num_tokens"] for entry in resumed.state.log_history if "num_tokens" in entry] == counted


def test_an_evaluation_logs_the_number_of_training_tokens_like_trl(make_model_folder, tmp_path):
    """This includes steps without a log: TRL counts each batch when it is computed."""
    rows = of_lengths(8)
    trainer = make_trainer(
        make_model_folder("llama"), rows, tmp_path, evaluation=rows[:3], per_device_train_batch_size=4,
        num_train_epochs=2, logging_steps=4, eval_strategy="epoch", save_strategy="epoch",
    )  # fmt: skip
    assert trainer.evaluate()["eval_num_tokens"] == 0
    trainer.train()
    tokens = sum(len(ids) for row in trainer.train_dataset["input_ids"] for ids in row)
    logged = [entry["eval_num_tokens"] for entry in trainer.state.log_history if "eval_num_tokens" in entry]
    assert logged == [0, tokens, 2 * tokens] or logged == [tokens, 2 * tokens]
    assert trainer.evaluate()["eval_num_tokens"] == 2 * tokens
    resumed = make_trainer(
        make_model_folder("llama"), rows, tmp_path, evaluation=rows[:3], per_device_train_batch_size=4,
        num_train_epochs=2, logging_steps=4, eval_strategy="epoch", save_strategy="epoch",
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # only the evaluation was logged there
    assert resumed.evaluate()["eval_num_tokens"] == 2 * tokens
