"""Augmentations of pre-training batches; see base.py."""
