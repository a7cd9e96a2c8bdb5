"""Probes: measurements of an exported backbone, shown apart from the scores; see `base`."""
