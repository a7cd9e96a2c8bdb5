"""Objectives of pre-training: one loss per module; `base` defines their interface."""
