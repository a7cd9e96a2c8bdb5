"""FLOP counts of layers, compared with counts by hand, and of an exported student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdep_bench.flops import forward_flops
from tests.pretrain.conftest import STUDENT


def test_flops_of_a_convolution_and_a_linear_layer_equal_the_count_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten())
    net.append(nn.Linear(8 * 16 * 16, 10))
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for batch in (1, 4):
        flops = forward_flops(net, torch.rand(batch, 3, 16, 16))
        # 2 FLOPs per multiply-add. Convolution: 8 x 3 channels, 3 x 3 kernel, 16 x 16 positions.
        assert flops == 2 * (8 * 3 * 9) * 16 * 16 + 2 * 8 * 16 * 16 * 10
    # Counting changes neither the mode nor the BatchNorm statistics.
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_flops_of_fused_attention_equal_the_count_by_hand() -> None:
    width, tokens = 32, 17
    net = nn.MultiheadAttention(width, 4, batch_first=True)

    class FusedAttention(nn.Module):
        """The same attention with PyTorch's fused operation."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.reshape(len(x), tokens, 4, 8).transpose(1, 2) for _ in range(3))
            return net.out_proj(
                nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            )

    # Queries times keys, attention weights times values, and the output projection.
    expected = 2 * tokens * tokens * width * 2 + 2 * tokens * width * width
    assert forward_flops(FusedAttention(), torch.rand(2, tokens, width)) == expected


def test_export_counts_the_flops_at_the_students_input_size(tmp_path: Path) -> None:
    from kdep_bench.networks.backbone import build_backbone
    from kdep_bench.transfer import export

    backbone: Any = build_backbone(STUDENT)
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    torch.save(state, tmp_path / "student.pth")
    outputs = export.run({"student": STUDENT}, {"pretrain": tmp_path}, tmp_path, lambda *_: None)
    # ResNet-18 at 224 px has 1.8 G multiply-adds (He et al. 2016, table 1). The student is 16 times
    # narrower: between 1/256 (inner layers) and 1/16 (first layer) of them; 32 px: (32 / 224)^2.
    assert 2 * 1.8e9 / 256 / 49 < outputs["flops"] < 2 * 1.8e9 / 16 / 49
