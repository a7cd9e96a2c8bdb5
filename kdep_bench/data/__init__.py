"""Data sets: preparation, checks, fixed views and data fractions."""
