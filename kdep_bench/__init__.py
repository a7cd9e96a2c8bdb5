"""kdep_bench: KDEP pre-training, and a downstream benchmark of the pre-trained backbones.

Each package imports only packages below it (tests/test_layers.py has the complete order), from the
lowest: `ops`, `openmmlab`, `data`, `results`, `networks`, `teachers`, `students`, `features`,
`objectives`, `pretrain`, `transfer`, `probes`, `suite`, `forecast`, `engine`, `cli`.

This file does not import torch, so that planning and reporting work without it. The Python
interface is the module `kdep_bench.api`.
"""

__version__ = "0.1.0"
