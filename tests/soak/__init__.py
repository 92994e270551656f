"""Tests that take minutes to hours and are run by hand: python -m tests.soak.kills, steps, images."""
