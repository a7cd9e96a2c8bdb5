"""The commands: arguments and printing. Torch is imported in the stages alone."""
