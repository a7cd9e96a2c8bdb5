"""Stores only the k largest class probabilities of a teacher, as TinyViT does.

A cache has k float16 probabilities and k int16 class numbers per view: 4 k bytes instead of 2 C for
the logits of C classes. The remaining probability is spread evenly over the other classes. Source:
Wu et al., ECCV 2022; microsoft/Cream `TinyViT/save_logits.py`, `main.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.errors import KdepError

# The stored arrays are named "probabilities.<k>" and "class_numbers.<k>".
VALUES, CLASSES = "probabilities", "class_numbers"
MAX_CLASSES = 2**15  # class numbers are stored as int16


def names(k: int) -> tuple[str, str]:
    """Names of the two arrays of k probabilities and their class numbers."""
    return f"{VALUES}.{k}", f"{CLASSES}.{k}"


def largest(logits_BC: Tensor, k: int, teacher: str) -> tuple[Tensor, Tensor]:
    """(probabilities [B, k] float32 in descending order, class numbers [B, k] int16).

    `teacher`: name of the teacher, for errors.

    Raises:
        KdepError: k is above the number of classes, or there are more classes than int16 can
            represent.
    """
    classes = logits_BC.shape[1]
    if k > classes:
        raise KdepError(
            f"the objective reads the {k} largest class probabilities of the teacher {teacher}, "
            f"but it has {classes} classes",
            fix=f"set top_classes to {classes} or less in the method's objective",
        )
    if classes > MAX_CLASSES:
        raise KdepError(
            f"the teacher {teacher} has {classes} classes",
            expected=f"at most {MAX_CLASSES}, for class numbers stored as int16",
            fix="use a method that reads its logits",
        )
    values, index = F.softmax(logits_BC.float(), 1).topk(k, 1)
    return values, index.to(torch.int16)


def dense(values_Bk: Tensor, classes_Bk: Tensor, classes: int) -> Tensor:
    """The probabilities of all classes, [B, classes] float32, from the k largest ones.

    The other classes share the rest evenly. Rows are divided by their sum if the stored values have
    a sum above 1 (by rounding to float16), or if k = classes.
    """
    values, index = values_Bk.float(), classes_Bk.long()
    n_spread = classes - values.shape[1]
    total = values.sum(1, keepdim=True)
    rest = (1 - total).clamp(min=0) / max(n_spread, 1)
    full = rest.expand(-1, classes).scatter(1, index, values)
    return full / (total.clamp(min=1) if n_spread else total)


def stored_error(logits_BC: Tensor, values_Bk: Tensor, classes_Bk: Tensor) -> float:
    """Largest absolute error of stored probabilities, compared with the teacher's logits.

    The order of classes with equal probability does not matter. If a class is not stored although
    its probability is larger than a stored one, the difference counts as an error.
    """
    live, index = F.softmax(logits_BC.float(), 1), classes_Bk.long()
    values = values_Bk.float()
    error = (live.gather(1, index) - values).abs().max()
    if values.shape[1] < live.shape[1]:
        left_out = live.scatter(1, index, 0.0).amax(1)
        error = torch.maximum(error, (left_out - values.amin(1)).max())
    return float(error)


def stored_top(arrays: Iterable[str]) -> int | None:
    """k of the array "probabilities.<k>" of a cache with these `arrays`; None if it has none."""
    return next((int(n.partition(".")[2]) for n in arrays if n.startswith(f"{VALUES}.")), None)
