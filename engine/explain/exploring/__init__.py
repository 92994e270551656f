"""A page on which one moves the merge budget of a model and sees what becomes of an image (tools/explore.py).

`page.py` alone needs gradio; everything that the page shows is computed and worded by the other modules.
"""
