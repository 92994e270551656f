"""Figures: everything that is drawn, from data that other parts of the engine have computed."""
