"""`RewardConfig`, `RewardTrainer` and their parts; run setup and dry run."""
