"""Training: the trainer, whole runs, folds."""
