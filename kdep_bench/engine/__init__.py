"""Runs the stages of a plan, on this machine or a cluster, and collects the finished ones."""
