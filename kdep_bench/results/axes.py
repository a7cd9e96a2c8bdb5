"""The kinds of budget that claims and charts can use."""

from __future__ import annotations

from typing import Literal

Axis = Literal["images", "images_seen", "seconds", "flops", "flops_without_teacher"]
