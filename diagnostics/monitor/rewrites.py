"""Weights that something besides the optimizer writes to every so many updates, as once an epoch: what that takes back.

A write is expected as long after the last one as that came after the one before; weights are sampled around it alone.
"""

from typing import Any

from torch import Tensor

from diagnostics import stats
from diagnostics.monitor import transfer
from diagnostics.monitor.distributed import is_dtensor
from diagnostics.monitor.pairs import sampled

SAMPLE = 1 << 16  # entries of the weights, of which a share is known to a per cent
SHOWN = 4  # numbers that show a write through `.data`, which nothing counts


class Rewrites:
    def __init__(self) -> None:
        self._weights = _Weights({})
        self._left: Any = None  # what the last update left, by which a write shows
        self._last = self._expected = 0  # updates before which the last write came, and the next one may
        self._origin: list[Tensor] = []  # the weights that the last write led to
        self._reached: list[Tensor] = []  # those that the next one finds

    def before(self, step: int) -> dict[str, Tensor]:
        """Of the column `taken_back`, as update `step` begins."""
        if self._left is None or self._left == self._weights.mark():
            return {}
        gap, self._last = step - self._last if self._last else 0, step
        often = gap == 1  # pairs of consecutive updates show that (`monitor.pairs`)
        now = [] if often else self._weights.sample()
        found = {}
        if now and self._reached:
            moved = stats.foreach._foreach_sub(self._reached, self._origin)
            back = stats.foreach._foreach_sub(self._reached, now)
            found = {"taken_back": stats.inner(back, moved) / stats.inner(moved, moved)}
        self._origin, self._reached, self._expected = now, [], step + gap if gap > 1 else 0
        return found

    def after(self, step: int, names: dict[str, Tensor]) -> None:
        """As update `step` ends."""
        if self._weights.names is not names:
            self._weights = _Weights(names)
        self._left, self._reached = self._weights.mark(), []
        if self._origin and step == self._expected - 1:
            self._reached = self._weights.sample()


class _Weights:
    """Looked at twice in each update: what takes longer than that is done once."""

    def __init__(self, names: dict[str, Tensor]) -> None:
        self.names, self._tensors = names, list(names.values())
        self._counted = [t for t in self._tensors if not is_dtensor(t)]
        self._last = [t for t in self._tensors[-1:] if _is_plain(t)]
        self._shown: tuple[int, Tensor] | None = None  # where the last one's numbers lie, and some of these

    def mark(self) -> Any:
        return sum([t._version for t in self._counted]), [self._seen(t) for t in self._last]

    def _seen(self, tensor: Tensor) -> Any:
        """Its numbers may lie elsewhere by now, or nowhere."""
        place = tensor.data_ptr()
        if self._shown is None or self._shown[0] != place:
            self._shown = place, tensor.detach().reshape(-1)[:SHOWN]
        return place, self._shown[1].tolist() if tensor.untyped_storage().size() else None

    def sample(self) -> list[Tensor]:
        return [part.clone() for part in sampled(self._tensors, SAMPLE)]


def _is_plain(tensor: Tensor) -> bool:
    return transfer.on_host(tensor.device) and not is_dtensor(tensor) and tensor.is_contiguous()
