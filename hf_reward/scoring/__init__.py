"""Scoring of texts: `RewardScorer`, bulk scoring and the HTTP server."""
