"""Claims as code: a config states what is claimed, the records decide it."""
