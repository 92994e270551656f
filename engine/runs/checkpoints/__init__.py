"""Checkpoint files: written atomically, sealed with a digest, and read back into a model or a stopped run."""
