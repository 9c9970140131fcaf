"""Along which dimension a model counts the positions of its tokens: a table of them is added to all examples alike."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diagnostics.monitor import functions

PLAIN = (Tensor, nn.Parameter)


class Positions:
    """A table is a parameter, a buffer, a part of one, or what was looked up by 0, 1, 2, ...: of something else of its
    shape, the sum of each example's tokens say, nobody knows which dimension it counts. Small, and held for a forward.
    """

    def __init__(self, kept: Iterable[Tensor]) -> None:
        """`kept`: parameters and buffers."""
        self._tables: dict[int, Tensor | None] = {address: None for each in kept if (address := _address(each))}
        self._held: list[Tensor] = []  # what was looked up, so that nothing else comes to lie at its address
        self._added: list[tuple[tuple[int, int], Tensor | None]] = []

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if func is F.embedding:
            self._look_up(functions.argument(args, kwargs, 0, "input"), out)
        elif func in functions.ADDING and len(args) == 2 and all(type(each) in PLAIN for each in args):
            for x, table in (args, args[::-1]):
                if _same_for_all(table.shape, x.shape) and (address := _address(table)) in self._tables:
                    self._added.append(((x.shape[0], x.shape[1]), self._tables[address]))

    def found(self) -> set[tuple[int, int]]:
        """Sizes (first, second dimension) of what tables were added to that count the second."""
        return {sizes for sizes, counted in self._added if counted is None or bool(counted)}

    def _look_up(self, index: Tensor, out: Tensor) -> None:
        if type(out) in PLAIN and index.dim() in (1, 2) and index.shape[-1] > 1:
            counted = (index == torch.arange(index.shape[-1], device=index.device)).all()
            self._tables[_address(out)] = counted
            self._held.append(out.detach())


def _same_for_all(table: torch.Size, x: torch.Size) -> bool:
    """Of shape (steps, channels) or (1, steps, channels); what is looked up may repeat them for each example."""
    return len(x) == 3 and len(table) in (2, 3) and table[-2:] == x[1:] and x[0] > 1 and x[1] > 1


def _address(tensor: Tensor) -> int:
    """Of its memory, the same for all its parts; 0 where it has none of its own."""
    plain = type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_meta
    return tensor.untyped_storage().data_ptr() if plain else 0
