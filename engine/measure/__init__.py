"""How good a model is: metrics, intervals, predictions, ensembles."""
