"""Whether a loss compares targets with what dropout left of an output, with no layer in between; and how much it drops
anywhere."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions


class Dropped:
    """Of one forward. `told`: the share of an output that is set to 0, and whether it is compared with numbers, not
    with classes; empty where nothing is. `most`: the largest share of what a layer with parameters gives."""

    def __init__(self) -> None:
        self.told: list[float] = []
        self.most = 0.0
        self._shares = WeakTensorKeyDictionary()  # of what dropout returned, whatever shape it was given since

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        x = functions.argument(args, kwargs, 0, "input")
        if not isinstance(x, Tensor) or not isinstance(out, Tensor):
            return
        if func in functions.DROPOUTS and functions.argument(args, kwargs, 2, "training", True):
            self._shares[out] = float(functions.argument(args, kwargs, 1, "p", 0.5))
            self.most = max(self.most, self._shares[out] if x.requires_grad else 0.0)
        elif func in functions.LAYOUT and x in self._shares:
            self._shares[out] = self._shares[x]
        elif func in functions.WITH_TARGETS and self._shares.get(x):
            self.told = [self._shares[x], float(func in functions.COMPARING)]
