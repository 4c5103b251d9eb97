"""How good a model is: likelihood, distances, memorization."""
