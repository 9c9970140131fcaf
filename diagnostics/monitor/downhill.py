"""The slope of the loss along an update: from the gradient as the backward pass left it, not as the optimizer got it.

Between both, loops clip by norm (a common factor), by value or tensor by tensor, zero rows, or add noise. Kept is a
sample of at most `pairs.SAMPLE` entries, and only in loops that were seen to write to gradients. Where it is not all of
the gradient, it only tells whether the optimizer got a multiple of it; otherwise the slope is not told.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.change import kept, zeros
from diagnostics.monitor.pairs import sampled

ALIKE = 1e-5  # 1 - cosine that is rounding in half precision


class Downhill:
    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._scale: Tensor | None = None
        self._factor: Tensor | None = None  # gradient of the loss over what the optimizer got of it
        self._written = False

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """After the backward pass."""
        self._kept = kept(_gradients(tensors))

    def received(self, tensors: Sequence[Tensor], whole: Any, norm: Any) -> None:
        """In the optimizer's pre-hook. `norm`: of what it gets; `whole`: of the gradient after the backward pass, the
        same object if nobody wrote to it, `None` if that is not known."""
        self._written, self._factor = whole is not None and whole is not norm, None
        if not self._written:
            self._kept = []
        elif self._kept and not _complete(self._kept, tensors):
            cosine = stats.cosine(self._kept, _gradients(tensors))
            self._factor = torch.where(cosine > 1 - ALIKE, torch.as_tensor(whole / norm).to(cosine), torch.nan)

    def slope(self, change: Sequence[Tensor], received: Tensor | None, scale: Tensor | None) -> Tensor | None:
        """g'u of the update, g the gradient of the loss; `None` where it cannot be told. `received`: the same of what
        the optimizer got."""
        kept, self._kept = self._kept, []
        if not self._written or received is None:
            return received
        if not kept:
            return None
        if _complete(kept, change):
            slope = stats.inner(kept, sampled(change))
            return slope if scale is None else slope / scale.to(slope)
        return None if self._factor is None else received * self._factor.to(received)


def _complete(parts: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    return all(part.numel() == tensor.numel() for part, tensor in zip(parts, tensors, strict=True))


def _gradients(tensors: Sequence[Tensor]) -> list[Tensor]:
    return sampled([_dense(t.grad) if t.grad is not None else zeros(t) for t in tensors])


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
