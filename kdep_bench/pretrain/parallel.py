"""One optimiser step of a global batch: in micro-batches, and over several processes.

The number of processes and of micro-batches is no part of what is trained. What makes it so:

* every rank and micro-batch has the same number of samples, so the mean of means is the mean;
* BatchNorm statistics are those of the global batch over all *processes* (`share_batch_norm`).
  Over *micro-batches* they cannot be: each is normalised by its own statistics, as everywhere.
  With BatchNorm an accumulated step therefore equals the big batch only in expectation; without
  it, it is equal but for rounding;
* the losses that are logged are means over all ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.model import MMDistributedDataParallel
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdep_bench.errors import KdepError


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def check_split(batch: int, processes: int, accumulate: int, couples_samples: bool) -> None:
    """Refuses a global batch that does not fall into equal parts, or must not be split."""
    parts = processes * accumulate
    how = f"{processes} processes x {accumulate} micro-batches"
    if batch % parts:
        raise KdepError(
            f"a batch of {batch} cannot be split into {how} of equal size",
            expected=f"a multiple of {parts}",
            fix="change the batch, the number of processes or budget.accumulate",
        )
    if couples_samples and parts > 1:
        raise KdepError(
            "the objective compares the samples of a batch with each other, but the batch is "
            f"split into {how}",
            fix="run it in one process with accumulate=1",
        )


def micro_batches(data: Mapping[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """The batch in `parts` of one size, nested mappings included."""

    def part(value: Any, k: int) -> Any:
        if isinstance(value, Mapping):
            return {key: part(v, k) for key, v in value.items()}
        size = len(value) // parts
        return value[k * size : (k + 1) * size]

    for k in range(parts):
        yield {key: part(value, k) for key, value in data.items()}


def accumulated_step(
    runs: Any, model: Any, data: Mapping[str, Any], optim_wrapper: Any, parts: int
) -> dict[str, Tensor]:
    """Forward and backward of each micro-batch at 1 / parts of its loss, then one update.

    Not mmengine's `accumulative_counts`, under which an iteration is a micro-batch: the rate, the
    checkpoints and the step an objective sees would then belong to parts of a batch.

    Args:
        runs: what is called, `model` or its DDP wrapper; gradients are exchanged once, at the end.
    """
    whole, logs = model.data_preprocessor(data, True), []
    for k, part in enumerate(micro_batches(whole, parts)):
        model.part = k
        alone = runs.no_sync() if k < parts - 1 and hasattr(runs, "no_sync") else nullcontext()
        with alone:
            with optim_wrapper.optim_context(runs):
                losses = runs._run_forward(part, mode="loss")
            loss, log = model.parse_losses(losses)
            optim_wrapper.backward(loss / parts)
        logs.append(log)
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return {key: torch.stack([log[key].detach() for log in logs]).mean() for key in logs[0]}


def mean_over_ranks(log: dict[str, Tensor]) -> dict[str, Tensor]:
    """The logged losses as every rank would see them on the global batch."""
    if world_size() == 1:
        return log
    values = torch.stack([v.detach().float() for v in log.values()])
    distributed.all_reduce(values)
    return dict(zip(log, (values / world_size()).unbind(), strict=True))


class DistributedDistiller(MMDistributedDataParallel):
    """mmengine's DDP wrapper with accumulation inside a step."""

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        parts = self.module.accumulate
        return accumulated_step(self, self.module, data, optim_wrapper, parts)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce (sum) whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        out = x.clone()
        distributed.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        out = grad.contiguous().clone()
        distributed.all_reduce(out)
        return out


def _shared_norm(bn: Any, x: Tensor) -> Tensor:
    """Batch norm of [B, C, ...] with the statistics of all ranks' samples, in float32.

    The ranks may hold different numbers of samples and positions, even none.
    """
    axes, shape = [d for d in range(x.ndim) if d != 1], [1, -1] + [1] * (x.ndim - 2)
    value = x.float()
    # new_full, not new_tensor: a GPU fills it, where a list would be copied there.
    count = value.new_full((1,), value.numel() / value.shape[1])
    sums = _SumOverRanks.apply(torch.cat([value.sum(axes), count]))
    n = sums[-1].detach()  # type: ignore[index]
    mean = sums[:-1] / n  # type: ignore[index]
    centred = value - mean.view(shape)
    var = _SumOverRanks.apply(centred.square().sum(axes)) / n  # type: ignore[operator]
    if bn.track_running_stats:
        with torch.no_grad():
            bn.num_batches_tracked += 1
            rate = 1 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
            bn.running_mean.lerp_(mean.detach(), rate)
            bn.running_var.lerp_(var.detach() * n / (n - 1).clamp(min=1), rate)
    out = centred * (var + bn.eps).rsqrt().view(shape)
    if bn.affine:
        out = out * bn.weight.view(shape) + bn.bias.view(shape)
    return out.to(x.dtype)


def share_batch_norm(net: nn.Module) -> int:
    """Lets every BatchNorm of `net` take its training statistics over all processes.

    torch's SyncBatchNorm is for GPUs alone and does not know timm's BatchNorm with an activation;
    this runs wherever all_reduce does. Modules keep their place, parameters, buffers and hooks:
    only what happens in training mode changes. Returns how many were changed.
    """
    count = 0
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            own = type(module)
            module.__class__ = type(f"Shared{own.__name__}", (own,), {"forward": _forward(own)})
            count += 1
    return count


def _forward(own: type) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return own.forward(self, x)  # type: ignore[attr-defined]
        out = _shared_norm(self, x)
        # timm's BatchNormAct2d: drop and activation follow.
        return self.act(self.drop(out)) if hasattr(self, "act") and hasattr(self, "drop") else out

    return forward
