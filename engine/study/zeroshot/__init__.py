"""Merging in a pretrained model without training: methods and budgets on labelled images (tools/zeroshot.py)."""
