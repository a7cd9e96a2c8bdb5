"""Shared by teachers and students: building a backbone, reading a layer before its activation."""
