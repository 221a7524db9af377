"""Curves and the history of a run."""

import struct
from pathlib import Path
from typing import Any

import pytest
from training_runs import losses, make_trainer
from transformers import TrainerCallback

from hf_reward.training.callbacks import CURVES_FILE, draw_curves, epoch_history


def size_of_png(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_training_draws_its_curves_as_a_png(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:4], plot_curves=True,
        eval_strategy="epoch", num_train_epochs=2,
    )  # fmt: skip
    trainer.train()
    width, height = size_of_png(tmp_path / "run" / CURVES_FILE)
    assert (width, height) == (1200, 768)


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": 0.7}], [{"step": 3, "eval_accuracy": float("nan")}]])
def test_curves_are_drawn_from_however_little_was_logged(tmp_path, history):
    draw_curves(history, tmp_path / "curves.png")
    size_of_png(tmp_path / "curves.png")


def test_a_curve_shows_what_was_logged(tmp_path):
    history = [{"step": step, "loss": 1 / step, "accuracy": 0.5} for step in range(1, 20)]
    draw_curves(history, tmp_path / "some.png")
    draw_curves([{**entry, "eval_loss": 0.3, "learning_rate": 1e-4} for entry in history], tmp_path / "more.png")
    assert (tmp_path / "some.png").read_bytes() != (tmp_path / "more.png").read_bytes()


def test_each_epoch_leaves_its_mean_loss_and_accuracy(make_model_folder, chat_pairs, tmp_path):
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

    whole = run()
    assert run(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4")) == whole
    assert len(whole) == 3


def test_a_trial_that_is_pruned_keeps_the_heads_at_hand(make_model_folder, chat_pairs, tmp_path):
    """A search calls `on_train_end` in the midst of it, without loading the best checkpoint."""

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


def test_history_leaves_out_everything_but_epochs():
    log = [{"step": 1, "loss": 1.0}, {"step": 2, "epoch": 1.0, "epoch_loss": 0.9, "epoch_accuracy": 0.5}]
    assert epoch_history(log) == [log[1]]
