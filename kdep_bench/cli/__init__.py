"""The commands: their arguments and their output.

Modules import torch only in functions that need it, so that --help and --dry-run are fast.
"""
