"""Run folders: writes them, and restores models from them."""
