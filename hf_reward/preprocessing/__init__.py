"""Canonical rows -> token ids -> batches: tokenizer, formatting, preparation, collators, samplers."""
