"""Changes to a pre-training batch: see base.py."""
