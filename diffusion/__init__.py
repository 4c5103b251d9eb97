"""Mathematics beyond the paper: schedules, loss weighting, augmentation, likelihood, optimizers."""
