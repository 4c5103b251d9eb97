"""Sampling, from x_T to x_0: samplers, guidance, editing, sets of samples."""
