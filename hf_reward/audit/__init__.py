"""Reward model + preference rows -> which biases it has, with intervals and verdicts, and what to do about them."""
