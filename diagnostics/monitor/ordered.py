"""What the order is worth in which a recurrent net reads: the loss, and that of its steps shuffled.

Where a model is given (a, b, ...) and answers with (a, b, ...) either may be time, and the sizes do not tell. But the
order of a batch's examples means nothing, and a state that goes from one to the next is of no use.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diagnostics.monitor import forwards, functions
from diagnostics.monitor.likeness import FEWEST
from diagnostics.monitor.sequences import Ends, Read

GROWTH = 1.15  # from look to look, by the number of updates: four in the later half of a run


class Ordered:
    """Asked at ever fewer of the measured updates."""

    def __init__(self) -> None:
        self._sizes: tuple[int, int] | None = None
        self._next = 0
        self._generator = torch.Generator().manual_seed(0)

    def meet(self, reads: Iterable[Read]) -> None:
        """`reads`: those along the first dimension, of which it is not known whether it is time (`unknown`)."""
        sizes = {(steps, sequences) for _, steps, sequences, _ in reads}
        self._sizes = sizes.pop() if len(sizes) == 1 else None

    def due(self, step: int) -> bool:
        if self._sizes is None or step < self._next:
            return False
        self._next = max(step + 1, int(GROWTH * step))
        return True

    def columns(
        self, model: nn.Module, closure: Callable[[], Any], states: forwards.RandomState | None
    ) -> dict[str, Tensor]:
        """Of `scalars`, by two forwards."""
        usual = forwards.loss_at([], [], closure, model, states)
        assert self._sizes is not None
        with _Shuffled(self._sizes, self._generator) as shuffled:
            other = forwards.loss_at([], [], closure, model, states)
        numbers = all(isinstance(each, Tensor) and each.numel() == 1 for each in (usual, other))
        return {"ordered_loss": usual, "shuffled_loss": other} if shuffled.calls and numbers else {}


def unknown(ends: Sequence[Ends], seen: Iterable[Read]) -> list[Read]:
    """Calls along the first dimension of what a model is given, where its answer has the same two first ones."""
    if len(ends) != 1 or len(ends[0][0]) < 2:
        return []
    (given, answer) = ends[0]
    same = answer[:2] == given[:2] and given[0] != given[1] and min(given[:2]) >= FEWEST
    return [each for each in dict.fromkeys(seen) if same and each[1:3] == tuple(given[:2]) and not each[3]]


class _Shuffled(TorchFunctionMode):
    """Recurrent calls read their steps in another order, and what they return is put back into the old one."""

    def __init__(self, sizes: tuple[int, int], generator: torch.Generator) -> None:
        super().__init__()
        self._sizes, self._generator, self.calls = sizes, generator, 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else None
        if func not in functions.RECURRENT or not isinstance(x, Tensor) or tuple(x.shape[:2]) != self._sizes:
            return func(*args, **kwargs)
        if x.dim() != 3 or args[-1] is True:
            return func(*args, **kwargs)
        self.calls += 1
        order = torch.randperm(len(x), generator=self._generator).to(x.device)
        out, *states = func(x[order], *args[1:], **kwargs)
        return (out[order.argsort()], *states)
