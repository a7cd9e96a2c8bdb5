"""Fine-tuning on few images: `pocket_finetune` with ten times its epochs and half its batch size.

The number of images is that of the data; `ota_pocket` has ten per class.
"""

from mmengine.config import read_base

with read_base():
    from .pocket_finetune import task

task.update(name="pocket_few")
task["recipe"].update(epochs=60, batch=16)
