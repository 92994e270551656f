"""Dense use of merged ViTs: a linear probe or a CNN stage that segments by frozen features (tools/segment.py)."""
