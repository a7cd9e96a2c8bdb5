"""From a suite's config to its plan: reading, checks, stages. Imports no torch.

`schema` defines the entries of a suite, `config` reads and merges configs, `pairs` and similar
modules raise errors for combinations that cannot work, and `plan` makes the `graph` of stages that
`kdep_bench.engine` runs.
"""
