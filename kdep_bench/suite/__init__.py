"""What is to run: config -> checks -> plan. Imports no torch.

`schema` holds what a person may write, `config` reads and merges it, `pairs` and its siblings
refuse what cannot work together, and `plan` makes the `graph` of
stages that `kdep_bench.engine` runs.
"""
