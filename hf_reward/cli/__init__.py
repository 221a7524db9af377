"""The command line: `hf-reward`."""

from hf_reward.cli.app import main

__all__ = ["main"]
