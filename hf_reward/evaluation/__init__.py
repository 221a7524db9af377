"""Baselines, the data check, benchmarks, the audit and metrics for `evaluate`."""
