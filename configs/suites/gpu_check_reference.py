"""The suite `gpu_check` on a CPU with three seeds: the reference for one run on a GPU.

Command   python tools/run_suite.py gpu_check_reference
Cost      about ten minutes on two cores
Outcome   results/gpu_check_reference
"""

from mmengine.config import read_base

with read_base():
    from .gpu_check import suite

suite.update(
    name="gpu_check_reference",
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
)
