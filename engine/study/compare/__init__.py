"""Comparisons: what is read into points (`reading`), and the table, figure and tests that are made from points."""
