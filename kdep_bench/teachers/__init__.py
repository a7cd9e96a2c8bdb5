"""Frozen teachers behind one face: see `kdep_bench.teachers.base`."""
