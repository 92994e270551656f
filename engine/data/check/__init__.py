"""The preflight: finds what is wrong with a folder of images before training."""
