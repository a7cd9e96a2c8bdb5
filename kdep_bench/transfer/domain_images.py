"""An image transform for data pipelines of mmdet that changes the domain of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from kdep_bench.data.domains import seed_from_name, to_domain


@TRANSFORMS.register_module(name="KdepChangeDomain")
class ChangeDomain(BaseTransform):
    """Replaces the image by the same scene in another domain; boxes stay as they are.

    The result is the same at every reading of a file, in every split and with every training seed.

    Args:
        domain: a name of `kdep_bench.data.domains.DOMAINS`.
    """

    def __init__(self, domain: str) -> None:
        self.domain = domain

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        rgb = results["img"][..., ::-1]  # the toolkits load BGR
        new = to_domain(rgb, self.domain, seed_from_name(str(results["img_path"])))
        results["img"] = np.ascontiguousarray(new[..., ::-1])
        return results
