"""Public benchmarks of reward models, one module each, scored as in the original code."""
