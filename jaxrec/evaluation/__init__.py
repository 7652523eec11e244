"""How good a model is: metrics, full ranking over the catalogue, protocols, baselines."""
