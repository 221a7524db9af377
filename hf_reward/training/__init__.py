"""`RewardConfig`, `RewardTrainer` and what they are made of; run setup and dry run."""
