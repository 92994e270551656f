"""Batches of images for training and evaluation: order, worker processes, and the loaders themselves."""
