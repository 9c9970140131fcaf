"""Cosines of two consecutive gradients and of two consecutive updates: of a measured update and of its partner."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.distributed import local

SAMPLE = 1 << 22  # entries of gradient and update kept to make a cosine: all of them, or every k-th


class Pairs:
    """Holds samples of one gradient and one update, from a measured update to its partner and no longer."""

    def __init__(self) -> None:
        self._step = 0
        self._gradient: list[Tensor] = []
        self._change: list[Tensor] = []

    def gradient(
        self, step: int, gradients: Sequence[Tensor | None], tensors: Sequence[Tensor], scale: Tensor | None
    ) -> dict[str, Tensor]:
        """Keep the gradient of update `step`; its cosine with the one before, if that was kept."""
        sample = _sample([torch.zeros_like(t) if g is None else g for g, t in zip(gradients, tensors, strict=True)])
        sample = [s.clone() if scale is None else s / scale.to(s.device, s.dtype) for s in sample]
        follows, before = self._step == step - 1 and bool(self._gradient), self._gradient
        if not follows:
            self._change = []
        self._step, self._gradient = step, sample
        return {"gradient_cosine": stats.cosine(before, sample)} if follows else {}

    def change(self, step: int, change: Sequence[Tensor], keep: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """The update's cosine with the one before, and its slope g'u. `keep`: the next update makes a pair with it."""
        gradient, before = self._gradient, self._change
        if not gradient or self._step != step:
            return {}, None
        sample = _sample(change)
        found = {"update_cosine": stats.cosine(before, sample)} if before else {}
        fits = all(g.numel() == c.numel() for g, c in zip(gradient, sample, strict=True))
        slope = stats.inner(gradient, sample) if fits else None
        self._gradient, self._change = (gradient, [s.clone() for s in sample]) if keep else ([], [])
        return found, slope


def _sample(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Every k-th entry, flat, so that about `SAMPLE` entries are kept."""
    stride = max(1, -(-sum(t.numel() for t in tensors) // SAMPLE))
    return [local(t).detach().reshape(-1)[::stride] for t in tensors]
