"""Teacher features: the cache, the alignment to the student's width, and the transform of it."""
