"""How fast: the parts of a merging model, whole models with and without merging, and the training data."""
