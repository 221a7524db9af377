"""Two processes equal one: the same step, and each evaluation row counts once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomize_head
from paths import PATHS
from test_trainer import ranked_lists, with_ties
from training_runs import largest_difference, load, losses, make_trainer, weights

pytestmark = pytest.mark.slow

WORKER = """
import json, sys
from pathlib import Path
import torch
sys.path[:0] = {paths!r}
from test_trainer_distributed import CASES, run_case
from training_runs import weights

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
for name in CASES:
    trainer, report = run_case(name, folder, out / "run")
    rank = trainer.args.process_index
    (out / f"{{name}}-{{rank}}.json").write_text(json.dumps(report))
    torch.save(weights(trainer.accelerator.unwrap_model(trainer.model)), out / f"{{name}}-{{rank}}.pt")
trainer.end()
"""


def lopsided() -> list[dict[str, Any]]:
    """Return four pairs with large weights, then four lists of four with small weights, one kind for each process."""
    rows = []
    for number, row in enumerate(ranked_lists(24)):
        if number % 3 == (0 if len(rows) < 4 else 2) and len(rows) < 8:
            rows.append({**row, "weight": 3.0 if len(rows) < 4 else 0.25})
    return rows


CASES: dict[str, dict[str, Any]] = {
    "weighted-lists": {"rows": ranked_lists(8)},
    "padded": {"rows": ranked_lists(8), "packing": "false"},
    "accumulated": {"rows": ranked_lists(8), "gradient_accumulation_steps": 2},
    "lopsided": {"rows": lopsided(), "train_sampling_strategy": "sequential"},
    "heads": {"rows": ranked_lists(8), "num_reward_heads": 3},
    "ties": {"rows": with_ties(8), "loss_type": "davidson", "center_rewards_coefficient": 0.1},
}


def run_case(name: str, folder: Path, out: Path) -> tuple[Any, dict[str, Any]]:
    """Run one step over eight rows and an evaluation of eleven, for any number of processes."""
    changes = dict(CASES[name])
    rows, parts = changes.pop("rows"), changes.get("gradient_accumulation_steps", 1)
    model = load(folder)
    randomize_head(model)
    size = 8 // int(os.environ.get("WORLD_SIZE", "1")) // parts
    evaluation = ranked_lists(11) if "ties" not in name else with_ties(11)
    trainer = make_trainer(
        model, rows, out / name, evaluation=evaluation, per_device_train_batch_size=size, per_device_eval_batch_size=2,
        max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, **changes,
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    output = trainer.predict(trainer.eval_dataset)
    report = {
        "world_size": trainer.args.world_size,
        "losses": losses(trainer),
        "history": [entry["epoch_loss"] for entry in trainer.history],
        "accuracy": [entry["accuracy"] for entry in trainer.state.log_history if "accuracy" in entry],
        "rows": output.label_ids[-1].tolist(),
        "rewards": output.predictions.tolist(),
        "metrics": {key: value for key, value in metrics.items() if "second" not in key and "time" not in key},
    }
    return trainer, report


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run every case in two processes once, with the model of the first test that needs it."""
    done: dict[str, Path] = {}

    def run(folder: Path) -> Path:
        if not done:
            out = tmp_path_factory.mktemp("two")
            script = out / "worker.py"
            script.write_text(WORKER.format(paths=PATHS))
            command = [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
                *("--master_port", str(free_port()), str(script), str(folder), str(out)),
            ]
            environment = {
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
            assert result.returncode == 0, result.stderr[-3000:]
            done["out"] = out
        return done["out"]

    return run


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_and_measure_the_rows_of_one(make_model_folder, two_processes, tmp_path, name):
    folder = make_model_folder("llama")
    out = two_processes(folder)
    trainer, one = run_case(name, folder, tmp_path)
    reports = [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    parameters = [torch.load(out / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [report["world_size"] for report in reports] == [2, 2]
    assert one["world_size"] == 1

    start = load(folder)
    randomize_head(start)
    before, after = weights(start), weights(trainer.model)
    both = before.keys() & after.keys()  # several heads have different names
    assert largest_difference({name: before[name] for name in both}, {name: after[name] for name in both}) > 1e-3
    assert largest_difference(parameters[0], parameters[1]) == 0
    assert largest_difference(parameters[0], weights(trainer.model)) < 1e-6

    for report in reports:
        assert report["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert report["history"] == pytest.approx(one["history"], rel=1e-6)
        assert report["accuracy"] == pytest.approx(one["accuracy"], abs=1e-7)
        assert report["rows"] == list(range(11))
        for found, expected in zip(report["rewards"], one["rewards"], strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
        for key, value in one["metrics"].items():
            assert report["metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), key


def test_groups_of_different_size_and_weight_do_not_bias_the_gradient(make_model_folder, two_processes, tmp_path):
    """A mean over the means of the processes would give the small weights of the second the influence of the first."""
    folder = make_model_folder("llama")
    out = two_processes(folder)
    rows = lopsided()
    assert [len(row["responses"]) for row in rows] == [2] * 4 + [4] * 4
    steps = []
    for number, part in enumerate((rows, rows[:4], rows[4:])):
        model = load(folder)
        randomize_head(model)
        before = weights(model)
        trainer = make_trainer(
            model, part, tmp_path / f"run-{number}", per_device_train_batch_size=8, max_steps=1, optim="sgd",
            learning_rate=0.1, max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        steps.append({name: value - before[name] for name, value in weights(trainer.model).items()})
    complete, first, second = steps
    naive = {name: (step + second[name]) / 2 for name, step in first.items()}
    # by hand: the first four rows weigh 12 of 13
    exact = {name: (12 * step + second[name]) / 13 for name, step in first.items()}
    start = load(folder)
    randomize_head(start)
    moved = torch.load(out / "lopsided-0.pt", weights_only=True)
    found = {name: value - weights(start)[name] for name, value in moved.items()}
    assert largest_difference(found, complete) < 1e-6
    assert largest_difference(found, exact) < 1e-6
    assert largest_difference(found, naive) > 1e-3
