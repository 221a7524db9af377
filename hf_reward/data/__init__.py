"""Load preference data: sources, row layouts, splits, duplicates, tables, atomic writes and path checks."""
