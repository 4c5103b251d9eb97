"""The mathematics around the paper: noise schedules, loss weighting, augmentation, likelihood."""
