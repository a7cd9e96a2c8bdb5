"""Records of transfer runs and probes: their format, files, checks and per-sample outputs."""
