"""kdep_bench: KDEP pre-training and a downstream benchmark that says whether it paid off.

Rooms, lowest first: `errors`, `files` -> `data`, `ops` -> `openmmlab` -> `teachers`,
`students`, `features`, `objectives` -> `pretrain`, `transfer` -> `suite` -> `results`.
Nothing here imports torch; the planning and reporting packages stay importable without it.
"""

__version__ = "0.1.0"
