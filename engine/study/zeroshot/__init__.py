"""Merging in a pretrained model without training: methods and budgets compared on labelled images (tools/zeroshot.py)."""
