"""The private methods of `Trainer` that `RewardTrainer` needs: a new version of transformers may change them."""

PRIVATE_OVERRIDES = {
    "_prepare_input": "under DeepSpeed `Trainer` rounds margins, probabilities and weights to half precision",
    "_run_epoch": "`Trainer` takes a step before it looks at `should_training_stop`, also in a run that is finished",
    "_get_output_dir": "a checkpoint is written beside its place until it is complete",
    "_save_checkpoint": "the checkpoint is renamed into its place before it is pushed and older ones are removed",
    "_push_from_checkpoint": "`Trainer` calls it while the checkpoint is still being written, and uploads other files",
}
"""Methods of `Trainer` that no public hook can replace, with the reason. A test compares their signatures."""
PRIVATE_CALLS = ("_get_train_sampler", "_prepare_inputs")
"""Methods of `Trainer` that are called; a test compares their signatures too."""
