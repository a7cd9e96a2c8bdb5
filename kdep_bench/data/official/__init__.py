"""The official data sets of KDEP's protocol, each in its own on-disk format: one file a set.

A set's module holds its archives, how they are laid out and converted, what a whole copy counts,
and a generator of a tiny copy in the same format for rehearsals and tests. A new module with a
`SET` is found by its file name. All sets lie side by side below one root, `$KDEP_DATA`.
"""
