"""A model sharded over processes is trained, evaluated and saved like a model in one process."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import randomize_head
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from training_runs import load, make_trainer

from hf_reward import verify_checkpoint
from hf_reward.modeling.sharding import HeadInFloat32, check_fsdp_settings, gathered_parameters
from hf_reward.publishing.verify import Check, Verification

sys.path.append(str(Path(__file__).parents[2] / "tests" / "faults"))

from distributed_check import (
    CONFIGS,
    SETUPS,
    Comparison,
    compare,
    launch,
    make_model,
    metric_difference,
    problems_of,
    read,
    relative,
    weight_difference,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the model; runs are kept there, so that each runs only once."""
    folder = tmp_path_factory.mktemp("distributed")
    make_model(folder / "model")
    return folder


def test_every_setup_has_its_launch_file():
    assert not [setup.config for setup in SETUPS.values() if not (CONFIGS / f"{setup.config}.yaml").is_file()]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("name", "form"), [("FSDP2", "padded"), ("FSDP2, LoRA", "packed")])
def test_sharded_training_evaluation_saving_and_resuming_equal_one_process(root, name, form):
    setup = SETUPS[name]
    one = launch("one process, LoRA" if "LoRA" in name else "one process", form, root)
    several = launch(name, form, root)
    found = compare(one, several, setup, form)
    assert found.equal, found
    assert found.rows == 11
    assert verify_checkpoint(several / "run" / "checkpoint-4").equal

    reports = [read(several, rank) for rank in (0, 1)]
    assert "saved/reward_config.json" in reports[0]["written"]
    assert min(reports[0]["losses"]) > 0
    spoiled = [{**reports[0], "rows": [0, *range(10)]}, {**reports[1], "written": ["saved/config.json"]}]
    assert len(problems_of(spoiled, setup, form)) == 2


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize(("name", "form"), [("ZeRO-2", "padded"), ("ZeRO-3", "packed")])
def test_deepspeed_training_evaluation_saving_and_resuming_equal_one_process(root, name, form):
    found = compare(launch("one process", form, root), launch(name, form, root), SETUPS[name], form)
    assert found.equal, found


@pytest.mark.slow
@pytest.mark.faults
def test_rewards_under_fsdp2_in_bfloat16_are_not_rounded_to_bfloat16(root):
    out = launch("FSDP2", "packed", root, "--bf16")
    rewards = torch.tensor(read(out, 0)["rewards"]).flatten()
    rewards = rewards[rewards != 0]
    assert (rewards.bfloat16().float() != rewards).float().mean() > 0.9
    saved = load_file(out / "saved" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    recorded = json.loads((out / "saved" / "reward_config.json").read_text())["probes"]["rewards"]
    assert list(recorded) == ["bfloat16"]
    assert verify_checkpoint(out / "saved").equal


# --- in one process ---


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_never_equal(value, place, tmp_path):
    """Python's `max` ignores a NaN that is not the first value."""
    sound = [0.5, 2.0, 4.0]
    broken = [value if each == place else number for each, number in enumerate(sound)]
    assert relative(sound, [0.5, 2.0, 3.0]) == 0.25
    for one, other in ((sound, broken), (broken, sound), (broken, broken)):
        assert relative(one, other) == math.inf
        assert metric_difference(*(dict(zip("abc", each, strict=True)) for each in (one, other))) == math.inf
    for name, numbers in (("one", sound), ("other", broken)):
        (tmp_path / name).mkdir()
        tensors = {f"w{number}": torch.tensor([1.0, each]) for number, each in enumerate(numbers)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert weight_difference(tmp_path / "one", tmp_path / "one") == 0
    assert weight_difference(tmp_path / "one", tmp_path / "other") == math.inf
    assert weight_difference(tmp_path / "other", tmp_path / "other") == math.inf
    names = ("loss", "gradient_norm", "weight", "metric", "resumed", "reloaded")
    assert Comparison(**dict.fromkeys(names, 0.0), rows=11, problems=()).equal
    for name in names:
        assert not Comparison(**dict.fromkeys(names, 0.0) | {name: value}, rows=11, problems=()).equal


def test_one_prompt_has_no_interval_in_either_run():
    bounds = {"single_accuracy_ci_low": math.nan, "single_accuracy_ci_high": math.nan}
    assert metric_difference({"eval_loss": 3.0} | bounds, {"eval_loss": 2.0} | bounds) == pytest.approx(1 / 3)
    assert metric_difference(bounds | {"a": 1.0}, bounds | {"a": 1.0, "single_accuracy_ci_low": 0.5}) == math.inf
    intervals = {"eval_accuracy_ci_low": math.nan}
    assert metric_difference(intervals, intervals) == math.inf


def test_the_largest_difference_of_a_verification_is_infinite_if_a_reward_is_not_finite():
    checks = [
        Check(name=f"rewards, {dtype}, each alone", passed=True, detail="", difference=difference)
        for dtype, difference in (("float32", 1e-7), ("bfloat16", 0.02), ("float16", None))
    ]
    assert Verification(folder="a", checks=checks[:2]).largest_difference() == 0.02
    assert Verification(folder="a", checks=checks).largest_difference("rewards, float32") == 1e-7
    assert Verification(folder="a", checks=checks).largest_difference() == math.inf
    assert Verification(folder="a").largest_difference() == 0


class Sharded(torch.nn.Module):
    """A backbone of one layer and a head, like `ReadsLastToken`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.score = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.hidden = self.layer(values)
        return torch.nn.functional.linear(self.hidden.float(), self.score.weight.float())


@pytest.fixture
def alone(tmp_path):
    """Return the device mesh of a process group with one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kept", [True, False])
def test_the_head_stays_float32_under_a_bfloat16_policy(alone, kept):
    torch.manual_seed(0)
    model = Sharded()
    weight, values = model.score.weight.detach().clone(), torch.randn(5, 4)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    fully_shard(model.layer, mesh=alone, mp_policy=policy)
    fully_shard(model, mesh=alone, mp_policy=policy)
    if kept:
        HeadInFloat32().on_train_begin(model=model)
    rewards = model(values)
    exact = torch.nn.functional.linear(model.hidden.float(), weight)
    assert model.hidden.dtype == torch.bfloat16
    assert (rewards.dtype == torch.float32) is kept
    assert torch.equal(rewards.float(), exact) is kept
    rewards.sum().backward()
    assert model.score.weight.grad.dtype == torch.float32


def test_unsharded_models_keep_their_policy_and_parameters():
    model = Sharded()
    HeadInFloat32().on_train_begin(model=model)
    with gathered_parameters(model.parameters()):
        torch.nn.init.ones_(model.score.weight)
    assert model.score.weight.sum() == 4


def test_an_adapter_that_would_be_saved_without_its_weights_is_refused(make_model_folder, tmp_path, text_pairs, caplog):
    model = load(make_model_folder("llama"))
    randomize_head(model)
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = make_trainer(model, text_pairs, tmp_path / "run", peft_config=lora)
    caplog.clear()
    settings = {"activation_checkpointing": True, "state_dict_type": "StateDictType.FULL_STATE_DICT"}
    with pytest.raises(ValueError, match="would only save the head"):
        check_fsdp_settings(SimpleNamespace(**settings), trainer.model)
    check_fsdp_settings(SimpleNamespace(**settings), trainer.model.get_base_model())
    check_fsdp_settings(None, trainer.model)
    assert not caplog.records
    sharded = {"activation_checkpointing": False, "state_dict_type": "StateDictType.SHARDED_STATE_DICT"}
    check_fsdp_settings(SimpleNamespace(**sharded), trainer.model)
    assert "does not save a complete model" in caplog.text
