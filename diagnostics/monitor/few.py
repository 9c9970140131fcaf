"""How many different examples a model was given, as long as they are few."""

import torch
from torch import Tensor

from diagnostics.monitor import transfer

MOST = 256  # examples: of more a batch seldom holds each several times
ENTRIES = 1024  # of an example, and examples of a batch, that are looked at
WIDEST = 16  # examples of a batch at least: fewer are soon all that there is


class Few:
    """Of the measured forwards, on a CPU. Counted until they are many; whole numbers, as of a table or a game, may be
    few by their nature."""

    def __init__(self) -> None:
        self._seen: set[float] | None = set()

    def columns(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        """Of table `scalars`."""
        batch = [x.detach() for x in inputs if x.dim() and len(x) == len(inputs[0])]
        if self._seen is None or not batch or len(batch[0]) < WIDEST:
            return {}
        if not all(transfer.on_host(x.device) and not x.is_complex() for x in batch):
            self._seen = None
            return {}
        with torch._C.DisableTorchFunction():  # called from a hook, where another monitor of the model would observe it
            rows = [_some(x).double() for x in batch]
            if all(bool((x == x.round()).all()) for x in rows):
                self._seen = None
                return {}
            marks = sum(x @ torch.arange(1, x.shape[1] + 1, dtype=x.dtype).sqrt() for x in rows)
        self._seen |= set(torch.as_tensor(marks).tolist())
        if len(self._seen) > MOST:
            self._seen = None
            return {}
        return {"examples_seen": torch.tensor(float(len(self._seen))), "batch_size": torch.tensor(float(len(batch[0])))}


def _some(x: Tensor) -> Tensor:
    rows = x[:ENTRIES].reshape(min(len(x), ENTRIES), -1)
    return rows[:, :: max(1, rows.shape[1] // ENTRIES)]
