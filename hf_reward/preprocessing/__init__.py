"""Convert canonical rows to token ids and batches: tokenizer, formatting, preparation, collators, samplers."""
