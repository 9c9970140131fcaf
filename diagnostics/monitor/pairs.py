"""Cosines of two consecutive gradients and of two consecutive updates: of a measured update and of its partner, and
what the loop took back of the first in between; and the update's slope along its own gradient, which no sample of the
entries gives well enough to compare with a loss."""

from collections.abc import Sequence

from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.change import kept, zeros
from diagnostics.monitor.distributed import local

SAMPLE = 1 << 22  # entries of gradient and update kept to make a cosine: all of them, or every k-th


class Pairs:
    """Holds samples of one gradient and one update, from a measured update to its partner and no longer."""

    def __init__(self) -> None:
        self._step = 0
        self._gradient: list[Tensor] = []
        self._change: list[Tensor] = []
        self._along: Tensor | None = None  # the weights that this change led to, along it
        self._whole: list[tuple[Tensor | None, int]] = []  # of the gradient, with how often each was written to
        self._scale: Tensor | None = None

    def gradient(
        self, step: int, gradients: Sequence[Tensor | None], tensors: Sequence[Tensor], scale: Tensor | None
    ) -> dict[str, Tensor]:
        """Keep the gradient of update `step`; its cosine with the one before, if that was kept, and the share of that
        update which has been taken back since."""
        gradients = [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]
        sample = sampled([zeros(t) if g is None else g for g, t in zip(gradients, tensors, strict=True)])
        sample = kept(sample) if scale is None else [s / scale.to(s.device, s.dtype) for s in sample]
        follows, before = self._step == step - 1 and bool(self._gradient), self._gradient
        found = {"gradient_cosine": stats.cosine(before, sample)} if follows else {}
        if follows and self._change and self._along is not None:
            moved = stats.inner(sampled(tensors), self._change) - self._along
            found["undone"] = -moved / stats.inner(self._change, self._change)
        if not follows:
            self._change = []
        self._along = None
        self._step, self._gradient, self._scale = step, sample, scale
        self._whole = [(None, 0) if g is None else (local(g).detach(), g._version) for g in gradients]
        return found

    def change(
        self, step: int, change: Sequence[Tensor], after: Sequence[Tensor], keep: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The update's cosine with the one before, and its slope g'u. `after`: the weights it led to. `keep`: the next
        update makes a pair with it."""
        gradient, before = self._gradient, self._change
        if not gradient or self._step != step:
            self._whole = []
            return {}, None
        sample = sampled(change)
        found = {"update_cosine": stats.cosine(before, sample)} if before else {}
        slope = self._slope(change, sample)
        self._gradient, self._change = (gradient, kept(sample)) if keep else ([], [])
        self._along = stats.inner(sampled(after), sample) if keep else None
        self._whole = []
        return found, slope

    def _slope(self, change: Sequence[Tensor], sample: Sequence[Tensor]) -> Tensor | None:
        """From what was kept of the gradient where that is all of it, else from the gradient itself, if nobody has
        written to it."""
        if any(g.numel() != c.numel() for g, c in zip(self._gradient, sample, strict=True)):
            return None
        if all(c.numel() == s.numel() for c, s in zip(change, sample, strict=True)):
            return stats.inner(self._gradient, sample)
        if any(g is not None and g._version != version for g, version in self._whole):
            return None
        pairs = [(g, c) for (g, _), c in zip(self._whole, change, strict=True) if g is not None]
        slope = stats.inner(*zip(*pairs, strict=True))
        return slope if self._scale is None else slope / self._scale.to(slope)


def sampled(tensors: Sequence[Tensor], entries: int | None = None) -> list[Tensor]:
    """Every k-th entry, flat, so that about so many are kept, or `SAMPLE`."""
    stride = max(1, -(-sum(t.numel() for t in tensors) // (entries or SAMPLE)))
    return [local(t).detach().reshape(-1)[::stride] for t in tensors]
