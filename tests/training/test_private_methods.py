"""Private methods and attributes of `Trainer` that `RewardTrainer` uses: all are listed, with their signatures."""

import ast
import inspect

import pytest
import torch
import transformers.trainer
from training_runs import settings
from transformers import Trainer

from hf_reward.training import trainer as module
from hf_reward.training.private_methods import PRIVATE_ATTRIBUTES, PRIVATE_CALLS, PRIVATE_OVERRIDES
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
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_load_best_model": ["self"],
    "_get_train_sampler": ["self", "train_dataset"],
}  # fmt: skip


def private_methods_of(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if name[0] == "_" and name[1] != "_" and callable(value)}


def attributes_in(source: str, kind: type[ast.expr_context]) -> set[str]:
    """Names of the attributes that some source code uses (`ast.Load`) or sets (`ast.Store`)."""
    nodes = ast.walk(ast.parse(source))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, kind)}


@pytest.mark.parametrize("name", [*PRIVATE_OVERRIDES, *PRIVATE_CALLS])
def test_the_signatures_are_unchanged(name):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == SIGNATURES[name]


def test_every_override_of_a_private_method_is_listed():
    assert RewardTrainer.__mro__[1] is Trainer
    assert private_methods_of(RewardTrainer) & private_methods_of(Trainer) == set(PRIVATE_OVERRIDES)


def test_every_call_of_a_private_method_is_listed():
    used = attributes_in(inspect.getsource(module), ast.Load)
    assert used & private_methods_of(Trainer) - set(PRIVATE_OVERRIDES) == set(PRIVATE_CALLS)


def test_every_use_of_a_private_attribute_is_listed(tmp_path):
    set_by_trainer = attributes_in(inspect.getsource(transformers.trainer), ast.Store)
    used = attributes_in(inspect.getsource(module), ast.Load)
    assert {name for name in used & set_by_trainer if name.startswith("_")} == set(PRIVATE_ATTRIBUTES)
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=settings(tmp_path, per_device_train_batch_size=3))
    assert trainer._train_batch_size == 3
