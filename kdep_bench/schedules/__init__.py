"""Schedules of the settings of an objective over a pre-training, such as its loss weights.

One class per module; `build` builds them.
"""
