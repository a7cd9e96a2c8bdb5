"""Detection in fog, with boxes for clear scenes only: `pocket_det`, scored on foggy test scenes.

The fog is generated from the scenes (kdep_bench/data/domains.py). Training reads the clear scenes
with their boxes; a transfer method may also read foggy training scenes without boxes. The task
`pocket_det_fog_source` scores the same detector on the clear test scenes.
"""

from mmengine.config import read_base

with read_base():
    from .pocket_det import task

task.update(name="pocket_det_fog", type="kdep_bench.transfer.domain_detection.DomainDetection")
task["recipe"].update(domain="fog", scored_on="target")
