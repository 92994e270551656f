"""The Pareto figure of a comparison: accuracy against cost, the front, colours and markers."""
