"""`python -m hf_reward.cli`."""

from hf_reward.cli.app import main

main()
