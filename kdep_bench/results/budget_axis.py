"""The kinds of budget: the x axis of charts of efficiency, and `axis` of a claim.

"images": distinct images; "images_seen": repeats included; "seconds": pre-training time with the
teacher cache; "flops": of student and teacher; "flops_without_teacher": of the student only.
"""

from __future__ import annotations

from typing import Literal

Axis = Literal["images", "images_seen", "seconds", "flops", "flops_without_teacher"]
