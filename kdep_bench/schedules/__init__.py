"""Schedules of loss weights over a pre-training: one class per module, built by `build`."""
