"""Pre-training on images that carry their own number, so that what a step reads can be checked."""
