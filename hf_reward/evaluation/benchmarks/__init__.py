"""Public benchmarks of reward models, one module each, with the arithmetic of the original code."""
