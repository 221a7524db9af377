"""Raw rows -> canonical rows: sources, splits, duplicates, tables, atomic writes, path checks."""
