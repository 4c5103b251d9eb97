"""The training loop around the paper: callbacks, loggers, resuming, stopping."""
