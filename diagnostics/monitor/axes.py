"""Whether a softmax is taken along the axis of the classes, by the one-hot targets that its output meets; and that of
attention along the axis that values are summed over. Elsewhere another axis may be meant, as where each place is shared
out among slots or clusters; not where the scores of what comes later are masked."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions

_LOGARITHMS = functions.LOGITS - {F.cross_entropy}
SEEN = 8  # examples: enough to know what they are
FEWEST = 3  # places: of two, one weight that is 0 by chance looks like a mask


class Axes:
    """Of one forward. `told`: the axis of the softmax, that of the targets' classes, and the shape of both; empty where
    none is known to be another. `over_queries`: the shape of weights of causal attention whose softmax is taken along
    the last axis but one."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.over_queries: list[int] = []
        self._along = WeakTensorKeyDictionary()  # the axis of what a softmax returned, or a function of each number

    @torch.no_grad()
    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        given = list(functions.tensors((*args, *kwargs.values())))
        if not given or self.told:
            return
        if isinstance(out, Tensor) and (axis := _axis(func, args, kwargs, given[0])) is not None:
            self._along[out] = axis
            return
        known = next((each for each in given if each in self._along), None)
        if known is None:
            return
        if (
            func in functions.INNER
            and known is given[0]
            and self._along[known] == known.dim() - 2
            and _is_causal(known)
        ):
            self.over_queries = list(known.shape)
        elif len(given) == 2 and given[0].shape == given[1].shape:
            self._meet(self._along[known], given[1] if known is given[0] else given[0])
        elif len(given) == 1 and isinstance(out, Tensor) and out.shape == known.shape and func not in functions.LAYOUT:
            self._along[out] = self._along[known]

    def _meet(self, along: int, targets: Tensor) -> None:
        some = targets[:SEEN]
        if not some.numel() or not bool(((some == 0) | (some == 1)).all()):
            return
        hot = [axis for axis in range(1, some.dim()) if some.shape[axis] > 1 and bool((some.sum(axis) == 1).all())]
        if len(hot) == 1 and hot[0] != along:
            self.told = [along, hot[0], *targets.shape]


def _is_causal(weights: Tensor) -> bool:
    """Of the first sample: none for what comes later, and some for all else."""
    first = weights.flatten(0, -3)[0] if weights.dim() > 2 else weights
    rows, columns = first.shape
    return rows == columns >= FEWEST and bool(((first != 0) == torch.ones_like(first).tril().bool()).all())


def _axis(func: Callable, args: tuple, kwargs: dict[str, Any], x: Tensor) -> int | None:
    """Of a softmax or log-softmax, counted from the first."""
    kind = functions.activation(func, args, kwargs)
    if not x.dim() or not (func in _LOGARITHMS or (kind is not None and kind.name == "softmax")):
        return None
    return functions.dimension(functions.KINDS["softmax"], args, kwargs, x) % x.dim()
