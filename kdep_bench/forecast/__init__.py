"""Estimates of the FLOPs, time, disk space and GPU-hours of a plan's stages."""
