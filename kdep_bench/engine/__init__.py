"""Runs a plan: processes, locks, attempts, state, clusters, and records of what finished."""
