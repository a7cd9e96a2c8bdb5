"""Probes: measurements of an exported backbone; no score, mean, rank or claim includes them."""
