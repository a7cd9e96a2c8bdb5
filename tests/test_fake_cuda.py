"""The fake GPU raises an error for each of the four faults that it must find."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.fake_cuda import fake_cuda


class Net(nn.Module):
    """A network with one fault that fails, or costs time, only on a GPU."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.layer, self.fault, self.kept = nn.Linear(4, 4), fault, torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.fault == "made on the CPU":
            return y + torch.arange(4)
        if self.fault == "no buffer":
            return y + self.kept
        if self.fault == "asks for a value":
            return y / float(y.mean())
        return y[y > 0] if self.fault == "asks for a size" else y


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("made on the CPU", "cuda:0 and cpu"),
        ("no buffer", "convert all Tensors to FakeTensors"),
        ("asks for a value", "_local_scalar_dense"),
        ("asks for a size", "nonzero"),
        ("", None),
    ],
)
def test_each_fault_is_found(fault: str, message: str | None):
    net = Net(fault)
    with fake_cuda(net) as fake:
        x = fake({"x": torch.ones(2, 4)})["x"].to("cuda")
        net.to("cuda")
        if message is None:
            assert net(x).device.type == "cuda"
            return
        with pytest.raises(Exception, match=message):
            net(x)
