"""Run folders: writing them, and reading them back into a model."""
