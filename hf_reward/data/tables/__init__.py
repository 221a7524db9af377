"""Tables of any size: rows in from JSONL, CSV, Parquet and `datasets`, rows out to JSONL and Parquet."""
