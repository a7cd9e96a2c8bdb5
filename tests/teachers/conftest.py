"""What the tests of this room share."""

from __future__ import annotations

import torch
from torch import Tensor

from kdep_bench.teachers.base import Teacher, TeacherOutput


def pictures(px: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, px, px), dtype=torch.uint8, generator=generator)


def normalised(teacher: Teacher, images: Tensor) -> Tensor:
    """What the network of `teacher` reads, computed apart from it."""
    return (images.float() - teacher.mean) / teacher.std


def asked(teacher: Teacher, images: Tensor) -> TeacherOutput:
    """The teacher's answer, given in eval mode, without gradient and without changing it."""
    before = teacher.checksum()
    teacher.train()
    out = teacher(images)
    assert not any(m.training for m in teacher.modules())
    tensors = [out.pooled, *out.maps.values(), out.logits, out.tokens]
    assert not any(t.requires_grad for t in tensors if t is not None)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert teacher.checksum() == before
    assert tuple(out.maps) == teacher.map_names
    assert (out.logits is not None) == teacher.has_logits
    return out


def close(a: Tensor | None, b: Tensor | None) -> None:
    """Equal up to the rounding of another order of the same sums."""
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


def lively(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`net` with every parameter and statistic random: nothing zero or one hides a slip."""
    generator = torch.Generator().manual_seed(seed)
    state = net.state_dict()
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = 0.5 + noise.abs()
        elif value.ndim > 1:
            state[name] = noise / max(1.0, value[0].numel() ** 0.5)
        else:
            state[name] = 0.3 * noise + (1.0 if name.endswith("weight") else 0.0)
    net.load_state_dict(state)
    return net.eval()
