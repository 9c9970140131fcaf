"""What each network of one forward is given, and which results come of it."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions

MOST = 16  # calls of first layers that are told apart
LARGEST = 1 << 22  # numbers in a batch of states that is held
_LAYERS = functions.LINEAR | functions.CONVOLUTIONS


class States:
    """A network is told by its first layer, so that a copy that is not watched is seen as well."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []  # that a first layer was given
        self._behind = WeakTensorKeyDictionary()  # of tensors: which of these they were computed from

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        given = list(functions.tensors((*args, *kwargs.values())))
        behind = self.behind(given)
        if not behind and func in _LAYERS and given and len(self.given) < MOST and given[0].numel() <= LARGEST:
            behind = frozenset([len(self.given)])
            self.given.append(given[0].detach())
        for result in functions.tensors((out,)) if behind else ():
            self._behind[result] = behind

    def behind(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        """Which of `given` these were computed from."""
        return frozenset[int]().union(*(self._behind[each] for each in tensors if each in self._behind))
