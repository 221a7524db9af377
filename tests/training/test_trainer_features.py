"""Features of `Trainer` work for reward models as for other models."""

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomize_head
from datasets import Dataset
from peft import LoraConfig
from training_runs import largest_difference, load, losses, make_trainer, weights
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback, TrainerCallback

from hf_reward import CheckpointRecord
from hf_reward.training.callbacks import CURVES_FILE

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def scripted(scores: list[float]) -> Any:
    """Return a metric with predefined values, so that a test chooses the best step."""
    values = iter(scores)
    return lambda prediction: {"planted": next(values)}


def random_model(folder: Path, **options: Any) -> Any:
    model = load(folder, **options)
    randomize_head(model)
    return model


class Recorder(TrainerCallback):
    """Records events, and the weights after each step."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("begin")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("step")
        self.weights[state.global_step] = weights(kwargs["model"])

    def on_evaluate(self, *args: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        assert "eval_accuracy" in metrics
        self.events.append("evaluate")

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.events.append("save")


# --- choosing and stopping ---


@pytest.mark.parametrize("adapter", [False, True])
def test_the_best_checkpoint_is_loaded_at_the_end_with_its_own_reward_statistics(
    make_model_folder, chat_pairs, tmp_path, adapter
):
    recorder = Recorder()
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:6], max_steps=3,
        learning_rate=1e-2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="planted", greater_is_better=True, callbacks=[recorder],
        compute_metrics=scripted([1.0, 3.0, 2.0]), peft_config=LoraConfig(**LORA) if adapter else None,
    )  # fmt: skip
    trainer.train()
    assert recorder.events == ["begin", *["step", "evaluate", "save"] * 3]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    assert largest_difference(weights(trainer.model), recorder.weights[2]) == 0
    assert largest_difference(weights(trainer.model), recorder.weights[3]) > 0
    best = CheckpointRecord.load(tmp_path / "run" / "checkpoint-2")
    assert best is not None
    assert trainer.record().reward_statistics == best.reward_statistics


def test_early_stopping_stops_when_the_metric_no_longer_improves(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:4], max_steps=10,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="planted", greater_is_better=True, save_total_limit=1,
        compute_metrics=scripted([1.0, 2.0, 1.5, 1.4, 9.0]), callbacks=[EarlyStoppingCallback(2)],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_metric == 2.0


def test_a_limit_keeps_only_the_last_checkpoints(make_model_folder, chat_pairs, tmp_path):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", max_steps=4, save_strategy="steps", save_steps=1,
        save_total_limit=2,
    )  # fmt: skip
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_a_step_is_bounded_by_the_gradient_norm(make_model_folder, chat_pairs, tmp_path):
    moved = []
    for limit in (1e-2, 0.0):
        model = random_model(make_model_folder("llama"))
        before = weights(model)
        trainer = make_trainer(
            model, chat_pairs[:8], tmp_path / "run", max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=limit
        )
        trainer.train()
        after = weights(trainer.model)
        moved.append(math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before)))
    assert moved[0] == pytest.approx(1e-2, rel=1e-3)
    assert moved[1] > 0.1


# --- precision and memory ---


@pytest.mark.parametrize("adapter", [False, True])
def test_under_bf16_autocast_head_rewards_and_loss_stay_float32(make_model_folder, chat_pairs, tmp_path, adapter):
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", bf16=True, max_steps=2, learning_rate=1e-2,
        peft_config=LoraConfig(**LORA) if adapter else None,
    )  # fmt: skip
    trainer.get_train_dataloader()  # the checks before training run without autocast
    seen: dict[str, set[torch.dtype]] = {"backbone": set(), "head": set(), "loss": set()}
    for name, module in trainer.model.named_modules():
        if name.endswith("mlp.down_proj"):
            module.register_forward_hook(lambda module, inputs, output: seen["backbone"].add(output.dtype))
        if type(module).__name__ == "Float32Linear":
            module.register_forward_hook(lambda module, inputs, output: seen["head"].add(output.dtype))
            assert module.weight.dtype == torch.float32
    loss_function = trainer.loss_function

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(loss_function, name)

        def __call__(self, rewards: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = loss_function(rewards, *args, **kwargs)
            seen["loss"] |= {rewards.dtype, loss.dtype}
            return loss

    trainer.loss_function = Spy()
    trainer.train()
    assert seen == {"backbone": {torch.bfloat16}, "head": {torch.float32}, "loss": {torch.float32}}
    assert losses(trainer)[1] < losses(trainer)[0]


def one_step(folder: Path, rows: Any, run: Path, adapter: bool, **changes: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Return the weights after one gradient step, and the number of runs of the first layer's MLP."""
    torch.manual_seed(5)  # for the initialisation of the adapter
    trainer = make_trainer(
        random_model(folder), rows, run, max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0,
        peft_config=LoraConfig(**LORA, init_lora_weights="gaussian") if adapter else None, **changes,
    )  # fmt: skip
    calls: list[str] = []
    layer = next(module for name, module in trainer.model.named_modules() if name.endswith("layers.0.mlp"))
    layer.register_forward_pre_hook(lambda *args: calls.append("mlp"))
    trainer.train()
    return weights(trainer.model), len(calls)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("packing", ["auto", "false"])
@pytest.mark.slow
def test_activation_checkpointing_computes_twice_and_gives_the_same_gradients(
    make_model_folder, chat_pairs, tmp_path, adapter, reentrant, packing
):
    folder, rows = make_model_folder("llama"), chat_pairs[:8]
    plain, base = one_step(folder, rows, tmp_path / "plain", adapter, packing=packing)
    saved, calls = one_step(
        folder, rows, tmp_path / "saved", adapter, packing=packing, activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": reentrant},
    )  # fmt: skip
    assert calls == base + 1
    assert largest_difference(plain, saved) < 1e-6


@pytest.mark.parametrize("adapter", [False, True])
def test_activation_offloading_gives_the_same_gradients(make_model_folder, chat_pairs, tmp_path, monkeypatch, adapter):
    folder, rows, used = make_model_folder("llama"), chat_pairs[:8], []
    original = torch.autograd.graph.save_on_cpu
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", lambda **options: used.append(1) or original(**options))
    plain, _ = one_step(folder, rows, tmp_path / "plain", adapter)
    assert not used
    moved, _ = one_step(folder, rows, tmp_path / "moved", adapter, activation_offloading=True)
    assert used
    assert largest_difference(plain, moved) < 1e-7


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_losses_and_saves_for_stock_transformers(
    make_model_folder, chat_pairs, tmp_path
):
    folder, found = make_model_folder("llama"), {}
    for compiled in (False, True):
        trainer = make_trainer(
            random_model(folder), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:5], max_steps=3,
            learning_rate=1e-3, torch_compile=compiled, torch_compile_backend="eager" if compiled else None,
            pad_to_multiple_of=32, packing="false",
        )  # fmt: skip
        trainer.train()
        found[compiled] = [*losses(trainer), trainer.evaluate()["eval_log_loss"]]
    assert found[True] == pytest.approx(found[False], rel=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert largest_difference(weights(stock), weights(trainer.accelerator.unwrap_model(trainer.model))) == 0


# --- data ---


def test_a_stream_of_pairs_trains_for_the_steps_asked_for(make_model_folder, chat_pairs, tmp_path):
    stream = Dataset.from_list(chat_pairs).to_iterable_dataset(num_shards=2)
    trainer = make_trainer(
        make_model_folder("llama"), stream, tmp_path / "run", max_steps=20, learning_rate=1e-2,
        evaluation=Dataset.from_list(chat_pairs[:7]).to_iterable_dataset(), per_device_eval_batch_size=3,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 20
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]
    assert trainer.evaluate()["eval_num_pairs"] == 7


def test_rows_of_similar_length_share_a_batch_on_request(make_model_folder, tmp_path):
    rows = [
        {"prompt": "word " * (1 + number * 7 % 32), "chosen": f"yes {number}", "rejected": f"no {number}"}
        for number in range(64)
    ]

    def padding(**changes: Any) -> float:
        trainer = make_trainer(
            make_model_folder("llama"),
            rows,
            tmp_path / "run",
            per_device_train_batch_size=4,
            packing="false",
            **changes,
        )
        masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        assert sum(len(mask) for mask in masks) == 128
        return sum(float((mask == 0).sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    shuffled = padding(length_bucketing="false")
    assert padding(train_sampling_strategy="group_by_length") < 0.5 * shuffled
    assert padding() < 0.5 * shuffled


def test_a_custom_collator_is_used(make_model_folder, chat_pairs, tmp_path):
    from hf_reward import DataCollatorForPreference

    seen: list[int] = []

    class Mine(DataCollatorForPreference):
        def __call__(self, rows: Any) -> Any:
            seen.append(len(rows))
            return super().__call__(rows)

    make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", max_steps=2, data_collator=Mine(pad_token_id=0)
    ).train()
    assert seen[:2] == [8, 8]


# --- search and reports ---


def test_a_model_of_model_init_trains_like_one_passed_as_an_argument(make_model_folder, chat_pairs, tmp_path):
    folder, found = make_model_folder("llama"), []
    for given in ({"model": load(folder)}, {"model": None, "model_init": lambda: load(folder)}):
        tokenizer = None if given["model"] is not None else tokenizer_of(folder)
        trainer = make_trainer(
            given.pop("model"), chat_pairs, tmp_path / "run", max_steps=3, learning_rate=1e-2,
            processing_class=tokenizer, **given,
        )  # fmt: skip
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
def test_a_hyperparameter_search_starts_each_trial_with_a_new_model_and_its_own_settings(
    make_model_folder, chat_pairs, tmp_path
):
    pytest.importorskip("optuna")
    folder = make_model_folder("llama")
    trainer = make_trainer(
        None, chat_pairs, tmp_path / "run", evaluation=chat_pairs, max_steps=4, learning_rate=1e-2,
        model_init=lambda: load(folder), processing_class=tokenizer_of(folder), eval_strategy="steps", eval_steps=4,
    )  # fmt: skip
    first: list[float] = []
    settings: list[float] = []

    class First(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if state.global_step == 1 and "loss" in logs:
                first.append(logs["loss"])
                settings.append(trainer.loss_function.label_smoothing)

    trainer.add_callback(First())
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"label_smoothing": trial.suggest_float("label_smoothing", 0.1, 0.4)},
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        n_trials=2, direction="maximize", backend="optuna",
    )  # fmt: skip
    assert first == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert len(set(settings)) == 2
    assert all(0.1 <= value <= 0.4 for value in settings)
    assert 0 <= best.objective <= 1


@pytest.mark.slow
def test_tensorboard_gets_the_numbers_of_training_and_evaluation(make_model_folder, chat_pairs, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", evaluation=chat_pairs[:4], max_steps=2,
        report_to="tensorboard", eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer.train()
    board = events.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert {"train/loss", "train/accuracy", "train/margin", "eval/accuracy"} <= set(board.Tags()["scalars"])
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses(trainer))


@pytest.mark.slow
def test_trackio_gets_the_numbers_without_a_network(make_model_folder, chat_pairs, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    trainer = make_trainer(
        make_model_folder("llama"), chat_pairs, tmp_path / "run", max_steps=2, report_to="trackio", project="reward"
    )
    trainer.train()
    with sqlite3.connect(SQLiteStorage.get_project_db_path("reward")) as database:
        rows = [row[0] for row in database.execute("select metrics from metrics")]
    assert any("train/accuracy" in str(row) for row in rows)
    assert SQLiteStorage.get_project_db_path("reward").is_relative_to(tmp_path)


def test_curves_are_drawn_only_on_request(make_model_folder, chat_pairs, tmp_path):
    folder = make_model_folder("llama")
    for wanted in (False, True):
        run = tmp_path / f"run-{wanted}"
        make_trainer(folder, chat_pairs, run, max_steps=2, plot_curves=wanted).train()
        assert (run / CURVES_FILE).is_file() == wanted
