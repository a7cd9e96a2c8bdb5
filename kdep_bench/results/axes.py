"""The axes on which a budget is measured, as claims name them and figures draw them."""

from __future__ import annotations

from typing import Literal

Axis = Literal["images", "images_seen", "seconds", "flops", "flops_without_teacher"]
