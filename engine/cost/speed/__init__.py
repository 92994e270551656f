"""Speed measurements: whole models with and without merging, the parts of merging, and the loading of training data."""
