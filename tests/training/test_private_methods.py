"""The private methods of `Trainer` that `RewardTrainer` needs: listed, with the signatures it was written for."""

import ast
import inspect

import pytest
from transformers import Trainer

from hf_reward.training import trainer as module
from hf_reward.training.private_methods import PRIVATE_CALLS, PRIVATE_OVERRIDES
from hf_reward.training.trainer import RewardTrainer

SIGNATURES = {
    "_prepare_input": ["self", "data"],
    "_prepare_inputs": ["self", "inputs"],
    "_run_epoch": [
        "self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
        "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    "_get_output_dir": ["self", "trial"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_get_train_sampler": ["self", "train_dataset"],
}  # fmt: skip


def private_methods_of(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if name[0] == "_" and name[1] != "_" and callable(value)}


@pytest.mark.parametrize("name", [*PRIVATE_OVERRIDES, *PRIVATE_CALLS])
def test_the_signatures_are_those_that_the_code_was_written_for(name):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == SIGNATURES[name]


def test_every_override_of_a_private_method_is_listed():
    assert RewardTrainer.__mro__[1] is Trainer
    assert private_methods_of(RewardTrainer) & private_methods_of(Trainer) == set(PRIVATE_OVERRIDES)


def test_every_call_of_a_private_method_is_listed():
    used = {node.attr for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Attribute)}
    assert used & private_methods_of(Trainer) - set(PRIVATE_OVERRIDES) == set(PRIVATE_CALLS)
