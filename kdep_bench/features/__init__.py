"""Teacher features: cache, alignment to the student's width, transform of the aligned feature."""
