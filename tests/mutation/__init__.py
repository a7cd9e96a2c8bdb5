"""Planted faults: how many one-line changes of the code that decides numbers the tests notice."""
