"""The speed of whole models: with merging and without, at several batch sizes, in several runtimes and precisions."""
