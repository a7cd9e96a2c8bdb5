"""The suite engine: config -> plan -> stages in processes of their own -> records.

`config` reads and checks, `plan` makes the graph, `state` says what is done, `execute` runs what is
not, `worker` is the child's side, `collect` turns finished chains into records, `cli` is the
command. Nothing here imports torch in the parent process.
"""
