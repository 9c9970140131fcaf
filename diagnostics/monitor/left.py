"""Are the weights still those that the update left? A clamp or another optimizer may have written to them since."""

from collections.abc import Sequence

from torch import Tensor

from diagnostics.monitor.distributed import squared_norms

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
