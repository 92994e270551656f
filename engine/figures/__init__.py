"""Figures: everything that is drawn, each from data that other rooms have computed."""
