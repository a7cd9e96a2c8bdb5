"""Estimates of the work, time, disk space and GPU-hours of a plan's stages."""
