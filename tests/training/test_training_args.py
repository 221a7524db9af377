"""`RewardConfig`: it accepts the fields of TRL's, checks values, and ignores no setting silently."""

import dataclasses
from contextlib import nullcontext
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_reward import PreferenceLoss, RewardConfig

TRL_FIELDS = {
    "learning_rate": 1e-4,
    "model_init_kwargs": None,
    "trust_remote_code": False,
    "chat_template_path": None,
    "disable_dropout": True,
    "dataset_num_proc": None,
    "eos_token": None,
    "max_length": 1024,
    "pad_to_multiple_of": "auto",
    "center_rewards_coefficient": None,
    "activation_offloading": False,
    "pad_token": None,
    "logging_steps": 10,
    "bf16": None,
}
"""Fields of TRL 1.16's `RewardConfig` and their defaults, except `gradient_checkpointing=True`."""


def config(**changes: Any) -> RewardConfig:
    return RewardConfig(output_dir="unused", **{"use_cpu": True, "report_to": "none", **changes})


def defaults() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(RewardConfig)}


@pytest.mark.parametrize("name", TRL_FIELDS)
def test_every_field_of_trls_config_exists_with_its_default(name):
    assert defaults()[name] == TRL_FIELDS[name]


@pytest.mark.slow
@pytest.mark.interop
def test_the_installed_trl_has_no_other_field():
    reward_config = pytest.importorskip("trl.trainer.reward_config")
    theirs = {field.name for field in dataclasses.fields(reward_config.RewardConfig)}
    assert theirs <= set(defaults())
    new = theirs - {field.name for field in dataclasses.fields(TrainingArguments)}
    assert new <= set(TRL_FIELDS)


def test_every_additional_field_has_a_help_text():
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(RewardConfig):
        if field.name not in inherited:
            assert field.metadata["help"].endswith((".", ")."))


@pytest.mark.parametrize(
    ("supported", "changes", "expected"),
    [
        (True, {"use_cpu": True}, False),
        (False, {"use_cpu": False}, False),
        (True, {"use_cpu": False}, True),
        (True, {"use_cpu": False, "bf16": False}, False),
        (False, {"use_cpu": True, "bf16": True}, True),
    ],
)
def test_bf16_is_on_by_default_only_where_an_accelerator_supports_it(monkeypatch, supported, changes, expected):
    for module in ("hf_reward.training.training_args", "transformers.training_args"):
        monkeypatch.setattr(f"{module}.is_torch_bf16_gpu_available", lambda: supported)
    assert config(**changes).bf16 is expected


def test_fp16_switches_the_default_bf16_off(monkeypatch):
    seen = []
    monkeypatch.setattr("hf_reward.training.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: seen.append(self.bf16))
    config(use_cpu=False, fp16=True)
    assert seen == [False]


def test_gradient_checkpointing_is_the_old_name_of_activation_checkpointing():
    renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # not yet in transformers 5.17
    warned = pytest.warns(FutureWarning, match="activation_checkpointing") if renamed else nullcontext()
    with warned:
        old = config(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert old.activation_checkpointing is True
    assert old.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert config(activation_checkpointing=True).gradient_checkpointing is True
    assert config().activation_checkpointing is False


@pytest.mark.parametrize("name", ["packing", "length_bucketing", "cache_features"])
@pytest.mark.parametrize(("given", "expected"), [("auto", "auto"), ("True", True), ("false", False), (True, True)])
def test_choices_are_text_for_the_parser_and_bool_or_auto_internally(name, given, expected):
    (parsed,) = HfArgumentParser(RewardConfig).parse_args_into_dataclasses(
        ["--output_dir", "x", f"--{name}", str(given)]
    )
    for found in (parsed, config(**{name: given})):
        assert getattr(found, name) == str(expected).lower()
        assert found.choice(name) is expected or found.choice(name) == expected == "auto"


def test_another_choice_is_refused():
    with pytest.raises(ValueError, match="`packing` must be 'auto', True or False, but is 'yes'"):
        config(packing="yes")


@pytest.mark.parametrize(
    ("given", "expected"), [("auto", None), (None, None), ("None", None), ("null", None), (8, 8), ("64", 64)]
)
def test_pad_to_multiple_of_is_read_from_python_and_the_command_line(given, expected):
    assert config(pad_to_multiple_of=given).pad_to_multiple_of == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing_factor": 0.1}, r"`label_smoothing_factor=0.1` smooths class labels.*`label_smoothing`"),
        ({"label_smoothing": 0.5}, r"`label_smoothing` must be in \[0, 0.5\), but is 0.5"),
        ({"label_smoothing": -0.1}, r"`label_smoothing` must be in .*is -0.1"),
        ({"loss_type": "pairwise"}, "`loss_type` must be one of .*'bradley_terry'.* but is 'pairwise'"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "`label_smoothing` has no effect with loss_type='hinge'"),
        ({"tie_parameter": 2.0}, "`tie_parameter` has no effect with loss_type='bradley_terry'"),
        ({"loss_type": "rao_kupper", "tie_parameter": 1.0}, "`tie_parameter` must be finite and above 1.0"),
        ({"over_length": "truncate"}, "`over_length` must be one of .* but is 'truncate'"),
        ({"max_length": 1}, "`max_length` must be at least 2 tokens, .* but is 1"),
        ({"num_reward_heads": 2.5}, "`num_reward_heads` must be an integer of 1 or more, but is 2.5"),
        ({"num_reward_heads": True}, "`num_reward_heads` must be an integer"),
        ({"pad_to_multiple_of": 0}, "`pad_to_multiple_of` must be 1 or more"),
        ({"batch_eval_metrics": True}, "`batch_eval_metrics=True`.*over the complete split"),
        ({"include_for_metrics": ["loss"]}, r"`include_for_metrics=\['loss'\]` is not available"),
        ({"eval_do_concat_batches": False}, "`eval_do_concat_batches=False`.*over the complete split"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        config(**changes)


def test_the_loss_and_the_format_rule_are_built_from_the_settings():
    args = config(
        loss_type="davidson", tie_parameter=0.5, center_rewards_coefficient=0.01, max_length=64, over_length="drop",
        separator="\n",
    )  # fmt: skip
    assert args.loss == PreferenceLoss(loss_type="davidson", tie_parameter=0.5, center_rewards_coefficient=0.01)
    assert args.format_rule.to_dict() == {"max_length": 64, "over_length": "drop", "separator": "\n"}


def test_the_command_line_and_json_give_the_same_settings_as_python():
    expected = config(
        model_init_kwargs={"revision": "main"}, head_learning_rate=1e-2, pad_to_multiple_of=16, max_length=None,
        center_rewards_coefficient=0.01, disable_dropout=False,
    )  # fmt: skip
    line = [
        *("--output_dir", "unused", "--use_cpu", "--report_to", "none", "--model_init_kwargs", '{"revision": "main"}'),
        *("--head_learning_rate", "0.01", "--pad_to_multiple_of", "16", "--center_rewards_coefficient", "0.01"),
        *("--disable_dropout", "false"),
    ]
    (found,) = HfArgumentParser(RewardConfig).parse_args_into_dataclasses(line)
    ours = {field.name for field in dataclasses.fields(RewardConfig)} - {"max_length"}
    assert {name: getattr(found, name) for name in ours} == {name: getattr(expected, name) for name in ours}
    assert RewardConfig(**expected.to_dict()).to_dict() == expected.to_dict()
