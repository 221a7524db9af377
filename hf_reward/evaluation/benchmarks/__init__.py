"""Public benchmarks of reward models: one file each over one small base, with the arithmetic of the original code."""
