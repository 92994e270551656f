"""Dense use of merged ViTs: a linear probe of frozen features that says the class of every pixel (tools/segment.py)."""
