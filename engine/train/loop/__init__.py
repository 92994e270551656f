"""The training loop and its parts: each is built from a run's settings and handed to the `Trainer`."""
