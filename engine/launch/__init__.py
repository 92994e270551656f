"""Several processes that train one run together, and runs as jobs of a cluster."""
