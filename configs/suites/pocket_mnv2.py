"""`pocket` with MobileNetV2 of width 0.5 as the student; data, views and cache are reused.

Command   python tools/run_suite.py configs/suites/pocket_mnv2.py
Cost      not measured yet on an idle machine; `--dry-run` estimates it
Outcome   45 runs, as `pocket`
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_mnv2",
    about="MobileNetV2 of width 0.5 at 64 px, teacher EfficientNet-Lite0, pocket data",
    students=["mobilenetv2_w50"],
)
