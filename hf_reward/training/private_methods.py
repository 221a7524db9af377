"""Private methods and attributes of `Trainer` that `RewardTrainer` uses. New versions of transformers may change them.

Tests compare the signatures with those of the installed version.
"""

PRIVATE_OVERRIDES = {
    "_prepare_input": "under DeepSpeed, `Trainer` would round margins, probabilities and weights to half precision",
    "_run_epoch": "`Trainer` takes a step before it checks `should_training_stop`, even in a finished run",
    "_get_output_dir": "a checkpoint is written to a temporary folder until it is complete",
    "_save_checkpoint": "the checkpoint is renamed before it is pushed and before older ones are removed",
    "_push_from_checkpoint": "`Trainer` calls it before the checkpoint is complete, and it uploads different files",
    "_load_from_checkpoint": "`Trainer` skips weights that have other names in files than in the model",
    "_load_best_model": "like `_load_from_checkpoint`; heads and evaluation of the best checkpoint are restored too",
}
"""Methods that no public hook can replace, with the reason."""
PRIVATE_CALLS = ("_get_train_sampler", "_prepare_inputs")
"""Methods that are called but not overridden."""
PRIVATE_ATTRIBUTES = ("_train_batch_size",)
"""Attributes that are used; `auto_find_batch_size` changes this one during a run."""
