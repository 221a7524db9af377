"""Training curves: the data in the figure, its colours, reference values and legend."""

import math
import struct
from pathlib import Path
from typing import Any

import pytest
from training_runs import make_trainer

from hf_reward.training.curves import (
    CURVES_FILE,
    EVALUATION,
    SMOOTHED_FROM,
    TRAINING,
    draw_curves,
    evaluation_splits,
    smoothed,
    training_figure,
)


def size_of_png(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def log_of(count: int) -> list[dict[str, Any]]:
    """A run with `count` training logs, an epoch that ends with the last, and an evaluation every tenth step."""
    log: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        log.append({"step": step, "loss": 1 / step, "accuracy": 0.6, "margin": step, "learning_rate": 1e-5 / step})
        if step % 10 == 0:
            log.append({"step": step, "eval_loss": 0.4, "eval_accuracy": 0.7, "eval_margin": 2.0})
    return [*log, {"step": count, "epoch_loss": 0.5, "epoch_accuracy": 0.65}]


def lines_of(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines() if len(line.get_xdata())}


def test_training_draws_its_curves_as_a_png(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:4], plot_curves=True,
        eval_strategy="epoch", num_train_epochs=2,
    )  # fmt: skip
    trainer.train()
    assert size_of_png(tmp_path / "run" / CURVES_FILE) == (1200, 768)


@pytest.mark.parametrize("history", [[], [{"step": 1, "loss": 0.7}], [{"step": 3, "eval_accuracy": float("nan")}]])
def test_curves_are_drawn_from_a_short_log(tmp_path, history):
    draw_curves(history, tmp_path / "curves.png")
    size_of_png(tmp_path / "curves.png")


def test_the_figure_holds_the_logged_values():
    loss, accuracy, margin, rate = training_figure(log_of(60)).axes
    drawn = lines_of(loss)
    assert list(drawn["training, each log"].get_xdata()) == list(range(1, 61))
    assert list(drawn["training, each log"].get_ydata()) == [1 / step for step in range(1, 61)]
    assert list(drawn["training, smoothed"].get_ydata()) == smoothed([1 / step for step in range(1, 61)])
    assert list(drawn["training, epoch mean"].get_ydata()) == [0.5]
    assert list(lines_of(accuracy)["evaluation"].get_xdata()) == [10, 20, 30, 40, 50, 60]
    assert list(lines_of(margin)["evaluation"].get_ydata()) == [2.0] * 6
    assert list(rate.get_lines()[0].get_ydata()) == [1e-5 / step for step in range(1, 61)]


def test_a_colour_has_one_meaning_in_all_panels_and_one_entry_in_the_legend():
    figure = training_figure(log_of(60))
    colors: dict[str, set[str]] = {}
    for axes in figure.axes[:3]:
        for label, line in lines_of(axes).items():
            colors.setdefault(label.partition(",")[0], set()).add(line.get_color())
        assert axes.get_legend() is None
    assert (colors["training"], colors["evaluation"]) == ({TRAINING}, {EVALUATION[0]})
    [legend] = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["training, each log", "training, smoothed", "training, epoch mean", "evaluation"]
    each, mean = lines_of(figure.axes[0])["training, each log"], lines_of(figure.axes[0])["training, smoothed"]
    assert each.get_alpha() < 0.5
    assert mean.get_alpha() is None


@pytest.mark.parametrize(("loss_type", "shown"), [("bradley_terry", True), ("plackett_luce", True), ("hinge", False)])
def test_reference_lines_stand_at_one_half_and_at_ln_2_where_that_is_the_loss_of_equal_rewards(loss_type, shown):
    loss, accuracy, *others = training_figure(log_of(3), loss_type=loss_type).axes
    assert [text.get_text() for text in accuracy.texts] == ["0.5\n(chance)"]
    assert [list(line.get_ydata()) for line in accuracy.get_lines() if line.get_linestyle() == ":"] == [[0.5, 0.5]]
    dotted = [list(line.get_ydata()) for line in loss.get_lines() if line.get_linestyle() == ":"]
    assert dotted == ([[math.log(2)] * 2] if shown else [])
    assert [text.get_text()[:4] for text in loss.texts] == (["ln 2"] if shown else [])
    assert not any(axes.texts for axes in others)


def test_short_logs_are_not_smoothed():
    assert "training" in lines_of(training_figure(log_of(SMOOTHED_FROM - 1)).axes[0])
    assert "training, smoothed" in lines_of(training_figure(log_of(SMOOTHED_FROM)).axes[0])


def test_smoothing_keeps_a_constant_and_leaves_out_nan():
    assert smoothed([3.0] * 50) == [3.0] * 50
    assert smoothed([1.0, math.nan, 3.0]) == [2.0] * 3
    assert all(math.isnan(value) for value in smoothed([math.nan] * 3))


def test_each_of_several_evaluation_splits_has_its_own_colour():
    entry = {"step": 1, "eval_a_loss": 1.0, "eval_a_hh_accuracy": 0.5, "eval_a_hh_log_loss": 1.0, "eval_b_loss": 2.0}
    assert evaluation_splits([entry]) == ["eval_a", "eval_b"]
    drawn = lines_of(training_figure([entry]).axes[0])
    assert drawn["evaluation: a"].get_color() == EVALUATION[0]
    assert drawn["evaluation: b"].get_color() == EVALUATION[1]


def test_no_text_of_the_figure_overlaps_another(tmp_path):
    figure = training_figure(log_of(60))
    figure.savefig(tmp_path / "curves.png")  # lays it out
    texts = [text for axes in figure.axes for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label)]
    texts += [figure._suptitle, *figure.legends[0].get_texts()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    overlaps = [(a, b) for place, a in enumerate(boxes) for b in boxes[:place] if a.overlaps(b)]
    assert overlaps == []
