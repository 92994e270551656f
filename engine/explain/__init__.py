"""Explanations as files: pictures of what a model looked at and merged, and how faithful they are."""
