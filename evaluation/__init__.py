"""Evaluate models: likelihood, distances between sets of images, memorization, checks of runs."""
