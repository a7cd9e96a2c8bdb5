"""Frozen teacher networks behind one interface, `kdep_bench.teachers.base.Teacher`."""
