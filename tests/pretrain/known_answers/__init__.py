"""Pre-training on images that show their number, so that what a step reads can be checked."""
