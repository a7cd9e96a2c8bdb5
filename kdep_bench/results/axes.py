"""The kinds of budget: the x axis of charts of efficiency, and `axis` of a claim."""

from __future__ import annotations

from typing import Literal

Axis = Literal["images", "images_seen", "seconds", "flops", "flops_without_teacher"]
