"""Checkpoints, run directories, and the file formats of other projects."""
