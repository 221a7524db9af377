"""Token budgets: they bound each forward pass and do not change the result of training."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomize_head
from paths import PATHS
from peft import LoraConfig
from test_trainer import ranked_lists, with_ties
from test_trainer_distributed import free_port
from test_trainer_evaluation import of_lengths
from training_runs import largest_difference, load, losses, make_trainer, settings, weights
from uneven_rows import LORA, SGD, Passes, alone, jumping, long_then_short, numbers, rows_seen, scorer

from hf_reward import DataCollatorForPreference, RewardTrainer
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.modeling.rewards import compute_rewards

# --- one step ---

STEPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "packed": (of_lengths(8), {}),
    "padded": (of_lengths(8), {"packing": "false"}),
    "padded to multiples": (of_lengths(8), {"packing": "false", "pad_to_multiple_of": 8}),
    "weighted lists": (ranked_lists(8), {}),
    "weighted lists, padded": (ranked_lists(8), {"packing": "false"}),
    "plackett_luce": (ranked_lists(8), {"loss_type": "plackett_luce"}),
    "ties and centering": (with_ties(8), {"loss_type": "davidson", "center_rewards_coefficient": 0.1}),
    "a margin in some rows": ([{**row, "margin": 0.3 * k} for k, row in enumerate(of_lengths(8))], {}),
    "soft labels": ([{**row, "probability": 0.55 + 0.05 * k} for k, row in enumerate(of_lengths(8))], {}),
    "accumulated": (ranked_lists(8), {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
    "accumulated, short": (ranked_lists(7), {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 3}),
    "an adapter": (ranked_lists(8), {"adapter": True}),
    "checkpointing": (ranked_lists(8), {"activation_checkpointing": True}),
    "checkpointing, reentrant": (
        ranked_lists(8),
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    "checkpointing with an adapter": (ranked_lists(8), {"adapter": True, "activation_checkpointing": True}),
    "offloading": (ranked_lists(8), {"activation_offloading": True}),
    "a clipped gradient": (ranked_lists(8), {"max_grad_norm": 0.05}),
}


def one_step(folder: Path, name: str, out: Path, budget: int | None) -> tuple[Any, dict[str, Any], list[int]]:
    """Return weights, log and passes of one optimizer step."""
    rows, changes = STEPS[name]
    changes = {**SGD, **changes}
    config = LoraConfig(**LORA) if changes.pop("adapter", False) else None
    trainer = scorer(folder, rows, out, max_steps=1, peft_config=config, max_tokens_per_batch=budget, **changes)
    trainer.get_train_dataloader()  # passes of the checks before training are not counted
    with Passes(trainer) as passes:
        trainer.train()
    return weights(trainer.model), numbers(trainer.state.log_history[0]), passes.tokens


@pytest.mark.parametrize("name", STEPS)
def test_one_step_under_any_budget_equals_the_step_without_one(make_model_folder, tmp_path, name):
    folder = make_model_folder("llama")
    expected, log, complete = one_step(folder, name, tmp_path, None)
    start = load(folder)
    randomize_head(start)
    head = next(value for name, value in expected.items() if name.endswith(("score.weight", "default.weight")))
    assert (head - start.score.weight).abs().max() > 5e-5
    assert {"loss", "grad_norm", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"} <= log.keys()
    most = sum(complete)
    for budget in (1, 2 * most // 5, most):
        found, its_log, passes = one_step(folder, name, tmp_path, budget)
        if budget < most:
            assert len(passes) > len(complete)
        elif len(complete) == 1:
            assert passes == complete
        assert largest_difference(found, expected) < 2e-6
        assert its_log == pytest.approx(log, rel=2e-5, abs=1e-6)


def test_the_loss_of_each_epoch_equals_that_without_a_budget(make_model_folder, tmp_path):
    folder, found = make_model_folder("llama"), []
    for budget in (None, 90):
        trainer = scorer(folder, ranked_lists(10), tmp_path, num_train_epochs=2, max_tokens_per_batch=budget, **SGD)
        trainer.train()
        assert trainer.state.global_step == 4
        found.append(trainer)
    for one, other in zip(found[0].history, found[1].history, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert losses(found[1]) == pytest.approx(losses(found[0]), rel=1e-4)


@pytest.mark.parametrize("packing", ["auto", "false"])
def test_no_pass_of_a_run_exceeds_the_budget(make_model_folder, tmp_path, packing):
    trainer = scorer(
        make_model_folder("llama"), jumping(), tmp_path, evaluation=jumping(12), max_tokens_per_batch=220,
        packing=packing, eval_strategy="epoch", num_train_epochs=2,
    )  # fmt: skip
    trainer.get_train_dataloader()  # passes of the checks before training are not counted
    rows = list(trainer.train_dataset)
    count = trainer.data_collator.collator.tokens
    assert max(count([row]) for row in rows) <= 300
    assert count(rows[:8]) > (1.5 if packing == "false" else 0.9) * 300  # the budget is needed; rows share tokens
    with Passes(trainer) as passes:
        trainer.train()
        trainer.predict(jumping(12))
    assert max(passes.tokens) <= 300
    assert len(passes.tokens) > 1.5 * (2 * 4 + 2 * 2 + 2)  # batches that were split


@pytest.mark.parametrize("packing", ["auto", "false"])
def test_a_group_larger_than_the_budget_trains_in_a_separate_pass(make_model_folder, tmp_path, packing):
    rows = of_lengths(8)
    rows[3] = {**rows[3], "prompt": "a long story " * 20}
    trainer = scorer(
        make_model_folder("llama"), rows, tmp_path, max_tokens_per_batch=150, packing=packing, max_steps=1, **SGD
    )
    trainer.get_train_dataloader()
    cost = trainer.data_collator.collator.tokens([trainer.train_dataset[3]])
    with Passes(trainer) as passes:
        trainer.train()
    assert [tokens for tokens in passes.tokens if tokens > 150] == [cost]
    assert len(passes.tokens) > 1


def test_a_frozen_backbone_with_cached_features_learns_the_same_under_a_budget(make_model_folder, tmp_path):
    found = []
    for budget, cached in ((None, "false"), (90, "false"), (90, "true")):
        model = load(make_model_folder("llama"), freeze_backbone=True)
        randomize_head(model)
        trainer = make_trainer(
            model, ranked_lists(), tmp_path, evaluation=ranked_lists(5), max_steps=4, max_tokens_per_batch=budget,
            cache_features=cached, **SGD,
        )  # fmt: skip
        trainer.get_train_dataloader()  # not counted
        with Passes(trainer) as passes:
            trainer.train()
            log_loss = trainer.evaluate()["eval_log_loss"]
            predictions = trainer.predict(ranked_lists(7)).predictions
        assert budget is None or max(passes.tokens) <= 90
        found.append((weights(trainer.model), log_loss, predictions))
    for moved, log_loss, predictions in found[1:]:
        assert largest_difference(moved, found[0][0]) < 1e-5
        assert log_loss == pytest.approx(found[0][1], rel=1e-4)
        assert np.abs(predictions - found[0][2]).max() < 1e-4


# --- evaluation ---


@pytest.mark.parametrize("packing", ["auto", "false"])
@pytest.mark.parametrize("size", [3, 8])
def test_evaluation_and_prediction_under_a_budget_equal_those_without_one(make_model_folder, tmp_path, packing, size):
    folder, rows, found = make_model_folder("llama"), [*ranked_lists(7), *long_then_short()[:3]], []
    for budget in (None, 1, 170):
        trainer = scorer(
            folder, rows, tmp_path, evaluation=rows, per_device_eval_batch_size=size, packing=packing,
            max_tokens_per_batch=budget,
        )  # fmt: skip
        metrics, output = trainer.evaluate(), trainer.predict(rows)
        assert output.label_ids[-1].tolist() == list(range(10))
        present = output.label_ids[0] != -100
        assert present.sum(1).tolist() == [len(row["responses"]) for row in rows]
        assert np.abs(output.predictions - alone(trainer, trainer.eval_dataset))[present].max() < 1e-4
        found.append((numbers(metrics), [np.where(present, output.predictions, 0), *output.label_ids]))
    for metrics, arrays in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-4, abs=1e-6, nan_ok=True)
        for one, other in zip(arrays, found[0][1], strict=True):
            assert np.allclose(one, other, atol=1e-4)


def test_rewards_of_a_split_batch_keep_its_order(make_model_folder, tmp_path):
    trainer = scorer(make_model_folder("llama"), long_then_short(), tmp_path, max_tokens_per_batch=100)
    rows = list(trainer.train_dataset)
    batch, complete = trainer.data_collator(rows), trainer.data_collator.collator(rows)
    assert len(batch["micro_batches"]) > 3
    assert torch.cat(batch["micro_rows"]).tolist() != list(range(8))
    with torch.no_grad(), packed_model(trainer.model):
        found, expected = compute_rewards(trainer.model, batch), compute_rewards(trainer.model, complete)
    assert found.shape == expected.shape == (8, 4)
    assert (found - expected).abs().max() < 1e-5


# --- resuming, faults, settings ---


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("packing", ["auto", "false"])
def test_a_run_stopped_within_an_epoch_equals_an_uninterrupted_one(make_model_folder, tmp_path, packing, step):
    def trainer() -> RewardTrainer:
        return scorer(
            make_model_folder("llama"), jumping(16), tmp_path / "run", max_steps=8, per_device_train_batch_size=4,
            save_strategy="steps", save_steps=3, max_tokens_per_batch=150, packing=packing, learning_rate=1e-2,
        )  # fmt: skip

    complete = trainer()
    complete.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert resumed.state.global_step == 8
    assert losses(resumed) == losses(complete)
    assert largest_difference(weights(resumed.model), weights(complete.model)) == 0


@pytest.mark.parametrize("packing", ["auto", "false"])
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_non_finite_loss_in_a_later_micro_batch_does_not_change_the_weights(
    make_model_folder, tmp_path, packing, bad
):
    rows, marked = jumping(8), 5
    rows[marked] = {"prompt": "", "chosen": "\x07", "rejected": "no"}  # the shortest row, so it is computed last
    trainer = scorer(
        make_model_folder("llama"),
        rows,
        tmp_path,
        max_tokens_per_batch=1,
        packing=packing,
        learning_rate=1.0,
        max_steps=1,
    )
    rare = trainer.processing_class("\x07", add_special_tokens=False)["input_ids"][-1]
    trainer.get_train_dataloader()
    before = weights(trainer.model)

    def plant(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((inputs[0] == rare).unsqueeze(-1), float(bad))

    trainer.model.get_input_embeddings().register_forward_hook(plant)
    with (
        Passes(trainer) as passes,
        pytest.raises(FloatingPointError, match=rf"at step 0, from the data rows \[{marked}\]\."),
    ):
        trainer.train()
    assert len(passes.tokens) == 8  # seven passes were finite
    assert trainer.model.score.weight.grad.abs().max() > 0
    assert largest_difference(before, weights(trainer.model)) == 0


def test_a_collator_that_cannot_count_tokens_is_refused_with_a_remedy(make_model_folder, tmp_path):
    class Mine:
        def __call__(self, rows: Any) -> Any:
            return DataCollatorForPreference(0)(rows)

    with pytest.raises(ValueError, match=r"method `tokens\(rows\)`, which Mine lacks\. Add the method .*or unset"):
        scorer(make_model_folder("llama"), of_lengths(8), tmp_path, max_tokens_per_batch=50, data_collator=Mine())
    scorer(make_model_folder("llama"), of_lengths(8), tmp_path, data_collator=Mine(), max_steps=1).train()


def test_a_custom_collator_that_counts_tokens_obeys_the_budget(make_model_folder, tmp_path):
    class Mine(DataCollatorForPreference):
        def tokens(self, rows: Any) -> int:
            return 10 * len(rows)

    trainer = scorer(
        make_model_folder("llama"), of_lengths(8), tmp_path, max_tokens_per_batch=30, data_collator=Mine(0), max_steps=1
    )
    with Passes(trainer) as passes:
        trainer.train()
    assert len(passes.tokens) == 2 + 3  # the check of a row alone and in a batch, then the parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens_per_batch": 0}, r"`max_tokens_per_batch` must be 1 or more, or None, but is 0"),
        ({"max_tokens_per_batch": -5}, r"`max_tokens_per_batch` must be 1 or more, or None, but is -5"),
        ({"length_bucketing": "sometimes"}, r"`length_bucketing` must be 'auto', True or False, but is 'sometimes'"),
        ({"length_bucketing": None}, r"`length_bucketing` must be 'auto', True or False, but is None"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


# --- two processes ---

WORKER = """
import sys
sys.path[:0] = {paths!r}
import {module}
{module}.{job}(*sys.argv[1:])
"""


def in_two_processes(job: str, out: Path, *arguments: Any, timeout: float = 200, module: str = __name__) -> None:
    """Run a function of this or another module in two processes."""
    script = out / f"{job}.py"
    script.write_text(WORKER.format(paths=PATHS, job=job, module=module))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--master_port", str(free_port()), str(script), *map(str, arguments)),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # torch.distributed.run ends its workers
        _, errors = process.communicate(timeout=60)
        pytest.fail(f"two processes still wait for each other after {timeout} s:\n{errors[-3000:]}")
    assert process.returncode == 0, errors[-3000:]


PACKED: dict[str, Any] = {"train_sampling_strategy": "sequential", "max_tokens_per_batch": 130}
PADDED_WIDE: dict[str, Any] = {"packing": "false", "max_tokens_per_batch": 360}
CASES: dict[str, dict[str, Any]] = {
    "packed": PACKED,
    "padded": {**PADDED_WIDE, "train_sampling_strategy": "sequential"},
    "accumulated": {**PACKED, "gradient_accumulation_steps": 2},
    "adapter": {**PACKED, "adapter": True},
    "checkpointing": {**PACKED, "activation_checkpointing": True},
    "ties": {**PACKED, "loss_type": "davidson", "center_rewards_coefficient": 0.1},
    "encoder": {**PADDED_WIDE, "arch": "bert"},
    "bucketed": PADDED_WIDE,
}


def run_case(name: str, llama: str, bert: str, out: Path) -> tuple[RewardTrainer, dict[str, Any]]:
    """Run one step over eight rows and an evaluation of eleven, for any number of processes."""
    changes = dict(CASES[name])
    rows = long_then_short()
    if name == "accumulated":
        rows = [
            rows[place] for place in (0, 1, 4, 5, 6, 7, 2, 3)
        ]  # each process has one long batch, in different steps
    if name == "ties":
        rows = [{**row, "responses": row["responses"][:2], "ranks": [0, k % 3 % 2]} for k, row in enumerate(rows)]
    folder = Path(bert if changes.pop("arch", None) else llama)
    config = LoraConfig(**LORA) if changes.pop("adapter", False) else None
    size = 8 // int(os.environ.get("WORLD_SIZE", "1")) // changes.get("gradient_accumulation_steps", 1)
    trainer = scorer(
        folder, rows, out / name, evaluation=[*rows, *ranked_lists(3)], per_device_train_batch_size=size,
        per_device_eval_batch_size=4, max_steps=1, peft_config=config, **SGD, **changes,
    )  # fmt: skip
    own = [len(batch["micro_batches"]) for batch in trainer.get_train_dataloader()]
    own_eval = [len(batch["micro_batches"]) for batch in trainer.get_eval_dataloader()]
    with Passes(trainer) as training:
        trainer.train()
    with Passes(trainer) as evaluating:
        output = trainer.predict(trainer.eval_dataset)
    metrics = trainer.evaluate()
    report = {
        "own": own,
        "own_eval": own_eval,
        "passes": len(training.tokens),
        "eval_passes": len(evaluating.tokens),
        "tokens": max(*training.tokens, *evaluating.tokens),
        "log": numbers(trainer.state.log_history[0]),
        "history": [entry["epoch_loss"] for entry in trainer.history],
        "rows": output.label_ids[-1].tolist(),
        "rewards": output.predictions.tolist(),
        "metrics": numbers(metrics),
    }
    return trainer, report


RESUMED: dict[str, dict[str, Any]] = {"buckets": {"packing": "false"}, "random order": {}}


def run_resumed(name: str, folder: str, out: Path) -> dict[str, Any]:
    """Return the rows of each step of a run of three epochs, and of one resumed within the second epoch."""
    found = {}
    for run, checkpoint in (("complete", None), ("resumed", str(out / name / "checkpoint-6"))):
        trainer = scorer(
            Path(folder), jumping(32), out / name, per_device_train_batch_size=4, num_train_epochs=3,
            save_strategy="steps", save_steps=6, learning_rate=1e-4, **RESUMED[name],
        )  # fmt: skip
        assert len(trainer.get_train_dataloader()) == 4
        seen = rows_seen(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        found[run] = seen
    return found


def work(llama: str, bert: str, folder: str) -> None:
    """Run the cases of the tests below in each of two processes."""
    out = Path(folder)
    for name in CASES:
        trainer, report = run_case(name, llama, bert, out / "run")
        rank = trainer.args.process_index
        (out / f"{name}-{rank}.json").write_text(json.dumps(report))
        torch.save(weights(trainer.accelerator.unwrap_model(trainer.model)), out / f"{name}-{rank}.pt")
    for name in RESUMED:
        (out / f"{name}-{rank}.json").write_text(json.dumps(run_resumed(name, llama, out / "resumed")))
    torch.distributed.barrier()  # both wait for each other before they exit
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run `work` in two processes once, with the models of the first test that needs it."""
    done: dict[str, Path] = {}

    def run(llama: Path, bert: Path) -> Path:
        if not done:
            done["out"] = tmp_path_factory.mktemp("two")
            in_two_processes("work", done["out"], llama, bert, done["out"])
        return done["out"]

    return run


def reports_of(name: str, out: Path) -> list[Any]:
    return [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_different_lengths_stay_in_step_and_equal_one(
    make_model_folder, two_processes, tmp_path, name
):
    llama, bert = make_model_folder("llama"), make_model_folder("bert")
    out = two_processes(llama, bert)
    trainer, one = run_case(name, str(llama), str(bert), tmp_path)
    reports = reports_of(name, out)
    if "train_sampling_strategy" in CASES[name]:
        assert reports[0]["own"] != reports[1]["own"]  # the test needs different lengths
        assert sum(map(max, zip(reports[0]["own"], reports[1]["own"], strict=True))) == reports[0]["passes"]
        assert name == "accumulated" or reports[0]["own_eval"] != reports[1]["own_eval"]
    assert reports[0]["passes"] == reports[1]["passes"] > 1
    assert sum(map(max, zip(reports[0]["own_eval"], reports[1]["own_eval"], strict=True))) == reports[0]["eval_passes"]
    assert reports[0]["eval_passes"] == reports[1]["eval_passes"]
    assert max(report["tokens"] for report in reports) <= CASES[name]["max_tokens_per_batch"]

    found = [torch.load(out / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert largest_difference(found[0], found[1]) == 0
    assert largest_difference(found[0], weights(trainer.model)) < 2e-6
    for report in reports:
        assert report["log"] == pytest.approx(one["log"], rel=1e-5, abs=1e-6)
        assert report["history"] == pytest.approx(one["history"], rel=1e-5)
        assert report["rows"] == one["rows"] == list(range(11))
        present = [[place < len(row) for place in range(4)] for row in trainer.eval_dataset["ranks"]]
        for expected in (np.array(one["rewards"]), alone(trainer, trainer.eval_dataset)):
            assert np.abs(np.array(report["rewards"]) - expected)[np.array(present)].max() < 1e-4
        assert report["metrics"] == pytest.approx(one["metrics"], rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_that_resume_within_a_later_epoch_see_the_remaining_rows(make_model_folder, two_processes, name):
    out = two_processes(make_model_folder("llama"), make_model_folder("bert"))
    reports = reports_of(name, out)
    both = [[*one, *other] for one, other in zip(reports[0]["complete"], reports[1]["complete"], strict=True)]
    for start in (0, 4, 8):
        assert sorted(chain(*both[start : start + 4])) == list(range(32))
    for report in reports:
        assert report["resumed"] == report["complete"][6:]


# --- sharded models ---

SHARDED: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    },
}


def squares(rewards: torch.Tensor) -> torch.Tensor:
    return (rewards[:, 0] - rewards[:, 1]).square().sum() + rewards.sum()


def sharding_example(folder: Path) -> tuple[Any, list[list[dict[str, Any]]]]:
    """Return a model and packed micro-batches: two for the first process, one for the second."""
    trainer = scorer(folder, long_then_short(), folder / "run")
    rows, pack = list(trainer.train_dataset), trainer.data_collator
    return trainer.model.train(), [[pack(rows[:2]), pack(rows[2:4])], [pack(rows[4:])]]


def shard_and_differentiate(folder: str, out: str) -> None:
    """Compute gradients of a model sharded over two processes; one has a micro-batch without rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model, parts = sharding_example(Path(folder))
    mesh = init_device_mesh("cpu", (2,))
    for layer in unwrap_model(model).base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    with packed_model(model):
        for number in (0, 1):
            mine = parts[rank][number] if number < len(parts[rank]) else None
            rewards = compute_rewards(model, parts[rank][0] if mine is None else mine)
            (rewards.sum() * 0 if mine is None else squares(rewards)).backward()
    gradients = {name: parameter.grad.full_tensor() * 2 for name, parameter in model.named_parameters()}
    torch.save(gradients, Path(out) / f"gradients-{rank}.pt")
    torch.distributed.barrier()  # both wait for each other before they exit
    torch.distributed.destroy_process_group()


def sharded_case(folder: Path, out: Path, name: str, sharded: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return weights and report of one step over eight rows and an evaluation of eleven."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

    parts = 2 if name == "accumulated" else 1
    model = load(folder)
    randomize_head(model)
    changes = {**PACKED, **SGD, **(SHARDED if sharded else {}), "gradient_accumulation_steps": parts}
    size = 8 // int(os.environ.get("WORLD_SIZE", "1")) // parts
    args = settings(
        out, max_steps=1, per_device_train_batch_size=size, per_device_eval_batch_size=4,
        activation_checkpointing=name == "checkpointing", **changes,
    )  # fmt: skip
    if sharded:
        assert args.device.type == "cpu"
        # accelerate shards only on accelerators; on CPUs it silently keeps complete models.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    rows = long_then_short()
    if parts == 2:
        rows = [rows[place] for place in (0, 1, 4, 5, 6, 7, 2, 3)]
    trainer = RewardTrainer(model, args, train_dataset=rows, eval_dataset=[*rows, *ranked_lists(3)])
    own = [len(batch["micro_batches"]) for batch in trainer.get_train_dataloader()]
    with Passes(trainer) as passes:
        trainer.train()
    log, moved = numbers(trainer.state.log_history[0]), weights(trainer.model)
    if sharded:
        assert trainer.accelerator.distributed_type == DistributedType.FSDP
        assert all(isinstance(value, DTensor) for value in moved.values())
        moved = {name: value.full_tensor() for name, value in moved.items()}  # type: ignore[attr-defined]
    output = trainer.predict(trainer.eval_dataset)
    rewards = np.where(output.label_ids[0] == -100, 0, output.predictions).tolist()
    return moved, {"own": own, "passes": len(passes.tokens), "log": log, "rewards": rewards}


SHARDED_CASES = ["one batch", "accumulated", "checkpointing"]


def train_in_shards(folder: str, out: str) -> None:
    """Train with FSDP2 in each of two processes."""
    for name in SHARDED_CASES:
        moved, report = sharded_case(Path(folder), Path(out) / "run", name, sharded=True)
        rank = torch.distributed.get_rank()
        torch.save(moved, Path(out) / f"{name}-{rank}.pt")
        (Path(out) / f"{name}-{rank}.json").write_text(json.dumps(report))
    torch.distributed.barrier()  # both wait for each other before they exit
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_model_has_the_gradients_of_an_unsharded_one(make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    in_two_processes("shard_and_differentiate", tmp_path, folder, tmp_path, timeout=120)
    model, parts = sharding_example(folder)
    with packed_model(model):
        for part in (*parts[0], *parts[1]):
            squares(compute_rewards(model, part)).backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        assert found.keys() == dict(model.named_parameters()).keys()
        for name, parameter in model.named_parameters():
            assert parameter.grad.abs().max() > 0
            assert (found[name] - parameter.grad).abs().max() < 1e-4 * max(1.0, float(parameter.grad.abs().max())), name


@pytest.mark.slow
def test_a_sharded_model_with_different_micro_batches_does_not_hang_and_equals_one(make_model_folder, tmp_path):
    folder = make_model_folder("llama")
    in_two_processes("train_in_shards", tmp_path, folder, tmp_path, timeout=120)
    for name in SHARDED_CASES:
        expected, one = sharded_case(folder, tmp_path / "one", name, sharded=False)
        reports = reports_of(name, tmp_path)
        assert reports[0]["own"] != reports[1]["own"]
        assert reports[0]["passes"] == reports[1]["passes"]
        assert reports[0]["passes"] == sum(map(max, zip(reports[0]["own"], reports[1]["own"], strict=True)))
        for rank, report in enumerate(reports):
            found = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert largest_difference(found, expected) < 2e-6, name
            logged = {key: value for key, value in one["log"].items() if key != "head_norm"}  # not measured for a shard
            assert report["log"] == pytest.approx(logged, rel=1e-5, abs=1e-6)
            assert np.allclose(report["rewards"], one["rewards"], atol=1e-4)


def test_a_micro_batch_without_weight_does_not_change_the_loss_of_the_epoch(make_model_folder, tmp_path):
    rows = [{**row, "weight": float(number > 0)} for number, row in enumerate(ranked_lists(4))]
    trainer = scorer(make_model_folder("llama"), rows, tmp_path, num_train_epochs=1, max_tokens_per_batch=1, **SGD)
    trainer.train()
    [epoch] = trainer.history
    assert epoch["epoch_loss"] == pytest.approx(losses(trainer)[0])
