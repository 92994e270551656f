"""Predicts images and writes submission files."""
