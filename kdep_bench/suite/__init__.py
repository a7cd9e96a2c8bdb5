"""From a suite's config to its plan: reading, checks, stages. Imports no torch.

`schema` holds what a person may write, `config` reads and merges it, `pairs` and its siblings
refuse what cannot work together, and `plan` makes the `graph` of
stages that `kdep_bench.engine` runs.
"""
