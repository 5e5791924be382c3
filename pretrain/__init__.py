"""Pre-training: SimSiam and its supervised reference row. From raw images to a canonical backbone and its card."""
