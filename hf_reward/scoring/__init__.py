"""Texts -> rewards: `RewardScorer`, bulk scoring and the HTTP server."""
