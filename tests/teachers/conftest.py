"""Random images, teacher outputs and networks for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from kdep_bench.teachers.base import Teacher, TeacherOutput


def random_images(px: int, count: int = 2) -> Tensor:
    """`count` images of random pixels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, px, px), dtype=torch.uint8, generator=generator)


def normalised(teacher: Teacher, images: Tensor) -> Tensor:
    """The normalised input of the teacher's network, computed independently of its own code."""
    return (images.float() - teacher.mean) / teacher.std


def output_of(teacher: Teacher, images: Tensor) -> TeacherOutput:
    """The teacher's output.

    Checks evaluation mode, that there are no gradients, that the weights are unchanged, and that
    the output has the maps and logits that the teacher states.
    """
    before = teacher.checksum()
    teacher.train()
    out = teacher(images)
    assert not any(module.training for module in teacher.modules())
    tensors = [out.pooled, *out.maps.values(), out.logits, out.tokens]
    assert not any(t.requires_grad for t in tensors if t is not None)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert teacher.checksum() == before
    assert tuple(out.maps) == teacher.map_names
    assert (out.logits is not None) == teacher.has_logits
    return out


def assert_close(a: Tensor | None, b: Tensor | None) -> None:
    """Checks that two tensors are equal up to rounding."""
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


def randomised(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network with random parameters and statistics, as zeros and ones could hide a mistake."""
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
