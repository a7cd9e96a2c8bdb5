"""The official data sets of KDEP's protocol, one module per set, each in its official file format.

The module of a set lists its archives, unpacks and converts them, states the image counts of the
complete release, and generates a tiny copy in the same format for tests and for rehearsals (runs on
tiny data). To add a set, add a module that defines `SET`. $KDEP_DATA has one subfolder per set.
"""
