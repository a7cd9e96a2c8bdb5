"""One optimiser step on a global batch, split into micro-batches and over several processes.

Training does not depend on the number of processes, because

* every rank and micro-batch has the same number of samples, so the mean of means is the mean;
* BatchNorm statistics are computed over the samples of all processes (`share_batch_norm`);
* logged losses are means over all ranks and micro-batches.

With several micro-batches, BatchNorm normalises each micro-batch by its own statistics. The step
then differs from the step of the undivided batch. Without BatchNorm, the two are equal up to
rounding.
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
    """Raises KdepError if a global batch must not be split, or cannot be split into equal parts.

    Args:
        batch: samples of the global batch.
        processes: number of processes.
        accumulate: micro-batches per process.
        couples_samples: whether the loss of a sample depends on the other samples of the batch.
    """
    parts = processes * accumulate
    split = f"{processes} processes x {accumulate} micro-batches"
    if batch % parts:
        raise KdepError(
            f"a batch of {batch} cannot be split into {split} of equal size",
            expected=f"a multiple of {parts}",
            fix="change the batch, the number of processes or budget.accumulate",
        )
    if couples_samples and parts > 1:
        raise KdepError(
            "the objective compares the samples of a batch with each other, but the batch is "
            f"split into {split}",
            fix="run it in one process with budget.accumulate=1",
        )


def micro_batches(data: Mapping[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """Yields `parts` consecutive parts of equal size of a batch, nested mappings included."""

    def take_part(value: Any, k: int) -> Any:
        if isinstance(value, Mapping):
            return {key: take_part(v, k) for key, v in value.items()}
        size = len(value) // parts
        return value[k * size : (k + 1) * size]

    for k in range(parts):
        yield {key: take_part(value, k) for key, value in data.items()}


def accumulated_step(
    wrapper: Any, model: Any, data: Mapping[str, Any], optim_wrapper: Any, parts: int
) -> dict[str, Tensor]:
    """One optimiser step with gradient accumulation; returns the mean of the logged values.

    mmengine's `accumulative_counts` is not used, because it counts a micro-batch as an iteration:
    learning rate, checkpoints and the objective's step number would then advance per micro-batch.

    Args:
        wrapper: the DDP wrapper of the model, or the model itself. Gradients are exchanged between
            processes once, in the last micro-batch.
        model: the Distiller.
        data: the batch of this process, as loaded.
        optim_wrapper: mmengine's OptimWrapper.
        parts: number of micro-batches.
    """
    batch, logs = model.data_preprocessor(data, True), []
    for k, part in enumerate(micro_batches(batch, parts)):
        model.micro_batch = k
        defer_sync = k < parts - 1 and hasattr(wrapper, "no_sync")
        with wrapper.no_sync() if defer_sync else nullcontext():
            with optim_wrapper.optim_context(wrapper):
                losses = wrapper._run_forward(part, mode="loss")
            loss, log = model.parse_losses(losses)
            optim_wrapper.backward(loss / parts)
        logs.append(log)
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return {key: torch.stack([log[key].detach() for log in logs]).mean() for key in logs[0]}


def mean_over_ranks(log: dict[str, Tensor]) -> dict[str, Tensor]:
    """The logged values averaged over all ranks."""
    if world_size() == 1:
        return log
    values = torch.stack([v.detach().float() for v in log.values()])
    distributed.all_reduce(values)
    return dict(zip(log, (values / world_size()).unbind(), strict=True))


class DistributedDistiller(MMDistributedDataParallel):
    """mmengine's DDP wrapper with gradient accumulation inside a training step."""

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
    """Batch norm of [B, C, ...] with the statistics of the samples of all ranks, in float32.

    The ranks may have different numbers of samples and positions, even none.
    """
    axes, shape = [d for d in range(x.ndim) if d != 1], [1, -1] + [1] * (x.ndim - 2)
    value = x.float()
    # new_tensor would copy a list from the CPU to the GPU.
    count = value.new_full((1,), value.numel() / value.shape[1])
    sums = _SumOverRanks.apply(torch.cat([value.sum(axes), count]))
    n = sums[-1].detach()  # type: ignore[index]
    mean = sums[:-1] / n  # type: ignore[index]
    centred = value - mean.view(shape)
    var = _SumOverRanks.apply(centred.square().sum(axes)) / n  # type: ignore[operator]
    if bn.track_running_stats:
        with torch.no_grad():
            bn.num_batches_tracked += 1
            # momentum None: cumulative average, as in torch's BatchNorm.
            momentum = 1 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
            bn.running_mean.lerp_(mean.detach(), momentum)
            bn.running_var.lerp_(var.detach() * n / (n - 1).clamp(min=1), momentum)
    out = centred * (var + bn.eps).rsqrt().view(shape)
    if bn.affine:
        out = out * bn.weight.view(shape) + bn.bias.view(shape)
    return out.to(x.dtype)


def share_batch_norm(net: nn.Module) -> int:
    """Makes every BatchNorm of `net` compute its training statistics over all processes.

    torch's SyncBatchNorm is not used: it runs only on GPUs and does not support timm's
    BatchNormAct2d. Parameters, buffers, hooks and evaluation mode are unchanged. The class of each
    module is replaced by a subclass. Returns the number of changed modules.
    """
    count = 0
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            cls = type(module)
            module.__class__ = type(f"Shared{cls.__name__}", (cls,), {"forward": _forward(cls)})
            count += 1
    return count


def _forward(cls: type) -> Any:
    """The `forward` of the synchronised subclass of a BatchNorm class."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return cls.forward(self, x)  # type: ignore[attr-defined]
        out = _shared_norm(self, x)
        # timm's BatchNormAct2d also applies dropout and an activation.
        return self.act(self.drop(out)) if hasattr(self, "act") and hasattr(self, "drop") else out

    return forward
