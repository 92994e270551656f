"""Whole training runs: one, or one for each fold; `loop/` has the training loop."""
