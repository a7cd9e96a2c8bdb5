"""kdep_bench: KDEP pre-training, and a downstream benchmark of the pre-trained backbones.

Packages, lowest first; each imports only lower ones (tests/test_layers.py): `errors`, `files` ->
`data`, `ops` -> `openmmlab` -> `networks` -> `teachers`, `students`, `features`, `objectives` ->
`pretrain`, `transfer` -> `suite` -> `engine`, `results`. This file does not import torch, so that
planning and reporting work without it.
"""

__version__ = "0.1.0"
