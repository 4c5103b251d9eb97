"""How good a model is: likelihood, distances between images, memorization, and checks of a run."""
