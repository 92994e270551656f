"""Dense use of merged ViTs: a linear probe or a CNN stage that segments by a model's features (tools/segment.py)."""
