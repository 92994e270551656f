"""How good a model is: metrics, confidence intervals, predictions and ensembles."""
