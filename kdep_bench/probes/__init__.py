"""Probes: measurements of an exported backbone, which enter no score, mean, ranking or claim."""
