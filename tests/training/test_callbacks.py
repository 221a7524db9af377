"""History of a run, and the state that is restored with its best checkpoint."""

from typing import Any

import pytest
from training_runs import losses, make_trainer
from transformers import TrainerCallback

from hf_reward.training.callbacks import epoch_history


def test_mean_loss_and_accuracy_are_logged_for_each_epoch(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", num_train_epochs=3, learning_rate=1e-2
    )
    trainer.train()
    assert [entry["epoch"] for entry in trainer.history] == [1, 2, 3]
    steps = losses(trainer)
    for epoch, entry in enumerate(trainer.history):
        assert entry["epoch_loss"] == pytest.approx((steps[2 * epoch] + steps[2 * epoch + 1]) / 2, rel=1e-5)
    assert trainer.history[-1]["epoch_accuracy"] == 1.0


def test_accumulated_steps_and_a_short_last_batch_count_each_row_of_the_epoch_once(
    make_model_folder, chat_pairs, tmp_path
):
    rows = [{**row, "weight": 1.0 + place % 3} for place, row in enumerate(chat_pairs[:13])]
    histories = []
    for size, parts in ((13, 1), (2, 7)):
        trainer = make_trainer(
            make_model_folder("llama"), rows, tmp_path / "run", per_device_train_batch_size=size,
            gradient_accumulation_steps=parts, num_train_epochs=2, learning_rate=1e-3,
        )  # fmt: skip
        trainer.train()
        histories.append([entry["epoch_loss"] for entry in trainer.history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)


def test_the_history_of_finished_epochs_survives_resuming(make_model_folder, chat_pairs, tmp_path):
    folder = make_model_folder("llama")

    def run(**options: str) -> list[dict[str, float]]:
        trainer = make_trainer(
            folder, chat_pairs, tmp_path / "run", num_train_epochs=3, save_strategy="epoch", learning_rate=1e-2,
        )  # fmt: skip
        trainer.train(**options)
        return trainer.history

    complete = run()
    assert run(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4")) == complete
    assert len(complete) == 3


def test_a_pruned_trial_keeps_its_current_heads(make_model_folder, chat_pairs, tmp_path):
    """A search that prunes a trial calls `on_train_end` during training, without loading the best checkpoint."""

    class Pruned(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                trainer.callback_handler.on_train_end(args, state, control)
                raise StopAsyncIteration

    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:4], max_steps=3,
        num_reward_heads=2, learning_rate=1e-2, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, load_best_model_at_end=True, callbacks=[Pruned()],
    )  # fmt: skip
    with pytest.raises(StopAsyncIteration):
        trainer.train()
    assert trainer.state.best_global_step == 1
    assert trainer.evaluation["step"] == 2


def test_the_history_holds_epochs_only():
    log = [{"step": 1, "loss": 1.0}, {"step": 2, "epoch": 1.0, "epoch_loss": 0.9, "epoch_accuracy": 0.5}]
    assert epoch_history(log) == [log[1]]
