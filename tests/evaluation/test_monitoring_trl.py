"""`MonitoredReward` as a reward function: its rewards, TRL's trainers and loggers, and two processes."""

import logging
import re
import sqlite3
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate.state import PartialState
from two_processes import in_two_processes

from hf_reward import MonitoredReward


def length_reward(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [None if text == "unscored" else float(len(text)) for text in completions]


def calls(count: int) -> list[tuple[list[str], list[str]]]:
    """Completions that become longer from call to call."""
    random = np.random.default_rng(0)
    prompts = [f"p{place // 4}" for place in range(16)]
    return [(prompts, ["ab " * int(n) for n in random.integers(3, 9, 16) + step // 2]) for step in range(count)]


def test_rewards_are_passed_through_and_monitored(caplog):
    logged: dict[str, float] = {}
    watched = MonitoredReward(length_reward)
    assert watched.__name__ == "length_reward"
    assert watched(["p", "p"], ["abc", "unscored"]) == [3.0, None]
    state = SimpleNamespace(global_step=0)
    with caplog.at_level(logging.WARNING, "hf_reward"):
        for state.global_step, (prompts, completions) in enumerate(calls(40), 1):
            watched(prompts=prompts, completions=completions, trainer_state=state, log_metric=logged.__setitem__)
    assert [row["step"] for row in watched.monitor.history] == list(range(41))
    assert watched.monitor.history[0]["responses"] == 1
    assert any("length has risen" in record.message for record in caplog.records)
    assert logged == watched.monitor.metrics()


def test_unusable_reward_functions():
    async def later(prompts: Any, completions: Any) -> list[float]:
        return []

    with pytest.raises(TypeError, match="asynchronous"):
        MonitoredReward(later)
    import torch

    with pytest.raises(TypeError, match="RewardScorer"):
        MonitoredReward(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="RewardScorer"):
        MonitoredReward("a-model")  # pyright: ignore[reportArgumentType]


def _half(rank: int, messages: bool) -> Any:
    """Monitor one half of each call; the halves divide the responses to a prompt."""
    PartialState(cpu=True)  # as a trainer does
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("hf_reward").addHandler(handler)
    watched = MonitoredReward(length_reward)
    for prompts, completions in calls(25):
        watched([{"role": "user", "content": each} for each in prompts[rank::2]] if messages else prompts[rank::2],
                completions[rank::2])  # fmt: skip
    return watched.monitor.history, watched.monitor.warnings, records


@pytest.mark.parametrize("messages", [False, True])
def test_two_processes_have_the_state_of_one(messages):
    found = in_two_processes(partial(_half, messages=messages))
    assert [kind for kind, _ in found] == ["result", "result"], found
    (first, warnings, logged), (second, others, silent) = (value for _, value in found)
    np.testing.assert_equal(first, second)
    assert warnings == others
    assert len(logged) == len(warnings) > 0
    assert not silent, "only the main process logs"
    alone = MonitoredReward(length_reward)
    for each in calls(25):
        alone(*each)
    for one, other in zip(first, alone.monitor.history, strict=True):
        assert one["units"]["length"] == pytest.approx(other["units"]["length"])
        assert one["association"] == pytest.approx(other["association"], nan_ok=True)
    assert [each.step for each in warnings] == [each.step for each in alone.monitor.warnings]


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_trl_logs_the_statistics_and_evaluations_are_left_out(
    name: str, make_model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import trl
    from datasets import Dataset
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    for module in ("trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio")
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "What is 2 + 2?"}]}] * 4)
    watched = MonitoredReward(lambda completions, **_: [float(len(each[0]["content"])) for each in completions])
    options: dict[str, Any] = {"max_completion_length": 6, "num_generations": 2, "max_steps": 3, "logging_steps": 1}
    options |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "report_to": ["tensorboard", "trackio"], "project": "grpo"}
    args: Any = getattr(trl, f"{name}Config")(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, **options)
    trainer: Any = getattr(trl, f"{name}Trainer")(
        model=str(make_model_folder("llama", "policy", seed=3)),
        reward_funcs=watched,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    assert [row["step"] for row in watched.monitor.history] == [0, 1, 2]
    lengths = pytest.approx([row["length"] for row in watched.monitor.history])
    logged = trainer.state.log_history
    assert [entry["monitor/length/mean"] for entry in logged if "monitor/length/mean" in entry] == lengths
    board = EventAccumulator(str(next((tmp_path / "board").rglob("events.*")).parent))
    board.Reload()
    assert [event.value for event in board.Scalars("train/monitor/length/mean")] == lengths
    with sqlite3.connect(SQLiteStorage.get_project_db_path("grpo")) as database:
        assert "monitor/length/mean" in str(database.execute("select metrics from metrics").fetchall())


@pytest.mark.slow
@pytest.mark.interop
def test_wandb_gets_the_statistics(make_model_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In its offline mode, which writes the logged values to a file. wandb is not installed with the other tools."""
    pytest.importorskip("wandb")
    import trl
    from datasets import Dataset

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "What is 2 + 2?"}]}] * 4)
    watched = MonitoredReward(lambda completions, **_: [float(len(each[0]["content"])) for each in completions])
    options: dict[str, Any] = {"max_completion_length": 6, "num_generations": 2, "max_steps": 3, "logging_steps": 1}
    args = trl.GRPOConfig(
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        bf16=False,
        report_to="wandb",
        per_device_train_batch_size=4,
        **options,
    )
    policy = str(make_model_folder("llama", "policy", seed=3))
    trl.GRPOTrainer(model=policy, reward_funcs=watched, args=args, train_dataset=rows).train()
    import wandb

    wandb.finish()
    (file,) = tmp_path.rglob("*.wandb")
    content = file.read_bytes()  # names and JSON values, not compressed
    found = re.findall(rb"train/monitor/length/mean[^\d]{1,6}([\d.]+)", content)
    logged = [float(value) for value in dict.fromkeys(found)]  # each record occurs twice
    assert logged == pytest.approx([row["length"] for row in watched.monitor.history])
