"""kdep_bench: KDEP pre-training, and a downstream benchmark of the pre-trained backbones.

Packages, lowest first; each imports only lower ones (tests/test_layers.py): `errors`, `files` ->
`data`, `ops` -> `openmmlab` -> `networks` -> `teachers`, `students`, `features`, `objectives` ->
`pretrain`, `transfer` -> `suite` -> `engine`, `results`. This file does not import torch, so that
planning and reporting work without it.

The Python interface is `kdep_bench.api`; its functions are not names of this package, where
`pretrain` and `features` are subpackages.
"""

__version__ = "0.1.0"
