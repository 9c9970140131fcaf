"""Has anybody written to weights or gradients since? A clamp or another optimizer may have, or clipping."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from diagnostics.monitor.distributed import is_dtensor, squared_norms

SAME = 1e-9  # of a squared norm: weights that nobody wrote to have the same one, bit by bit


class Left:
    """Weights as an update left them: writes through `.data` are not counted, others need not change a norm."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._versions = [t._version for t in tensors]
        self._squares = squared_norms([t.detach() for t in tensors], together=False)

    def untouched(self, tensors: Sequence[Tensor]) -> Tensor:
        """One bool, on the device."""
        now = Left(tensors)
        same = (now._squares - self._squares).abs() <= SAME * self._squares
        return same.all() & (now._versions == self._versions)


def writes(weights: Iterable[Tensor]) -> int:
    """How often weights were written to so far, as far as that is counted."""
    return sum(tensor._version for tensor in weights if not is_dtensor(tensor))


def gradient_versions(tensors: Iterable[Tensor]) -> list[tuple[int, Any]]:
    """Changes whenever a gradient is written to; always for a DTensor, which does not count writes to its part."""
    gradients = [t.grad for t in tensors]
    return [
        (id(g), g._version if type(g) is Tensor or not is_dtensor(g) else object()) for g in gradients if g is not None
    ]
