"""The tensors that are watched, by name; looked up again when the optimizer or the model has got others."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.monitor import describe

RENEWALS = 3  # times that replaced parameters are looked up: a model that makes them anew each time is not followed


class Tensors:
    """`named` in the order of the recorded columns; `changed(why)` is called after they were looked up again."""

    def __init__(self, inner: nn.Module, optimizer: Optimizer, changed: Callable[[str], None]) -> None:
        self._inner, self._optimizer, self._changed = inner, optimizer, changed
        self.named = describe.named_tensors(inner, optimizer)
        self._count, self._renewed = _size(optimizer), 0

    @property
    def device(self) -> torch.device:
        first = next(iter(self.named.values()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def numbers(self) -> int:
        return sum(tensor.numel() for tensor in self.named.values())

    def current(self) -> dict[str, Tensor]:
        """Looked up again where the optimizer's number of parameters has changed."""
        count = _size(self._optimizer)
        if count != self._count:
            self._count = count
            self._look_up(f"the optimizer now holds {count} tensors")
        return self.named

    def renewed(self) -> bool:
        """Whether the model's parameters were replaced by others since, which takes a look at each: before a measured
        update."""
        if self._renewed >= RENEWALS or not describe.replaced(self._inner, self.named):
            return False
        self._renewed += 1
        self._look_up("parameters of the model were replaced by others")
        return True

    def _look_up(self, why: str) -> None:
        self.named = describe.named_tensors(self._inner, self._optimizer)
        self._changed(why)


def _size(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)
