"""Means, intervals, comparisons and power over seeds and tasks."""
