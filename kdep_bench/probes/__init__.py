"""Properties of an exported backbone that no transfer score, mean, ranking or claim includes."""
