"""What a checkpoint is, and the formats of other projects."""
