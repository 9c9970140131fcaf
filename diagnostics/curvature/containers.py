"""Lists, dictionaries, sets, queues and NumPy arrays that a module holds, as a memory bank does.

What an evaluation puts in or takes out is put back, in the same object. What their tensors hold is not kept.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

LENGTH = 1 << 16  # entries; longer ones would take longer to copy than much of what is measured
_EXACTLY = frozenset((list, dict, set, deque, np.ndarray))  # a class of its own may do more than hold
_TORCHS = frozenset(vars(nn.Module()))  # parameters, buffers, children and hooks


class Contents:
    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def keep(self, attributes: Mapping[str, Any]) -> None:
        """Of the containers among a module's own attributes."""
        for name, held in attributes.items():
            if type(held) in _EXACTLY and name not in _TORCHS and _size(held) <= LENGTH:
                self._kept.append((held, held.copy()))

    def restore(self) -> None:
        for held, before in self._kept:
            if not _same(held, before):
                _refill(held, before)


def _refill(held: Any, before: Any) -> None:
    if isinstance(held, np.ndarray):
        held[...] = before
        return
    held.clear()
    (held.extend if isinstance(held, list | deque) else held.update)(before)


def _size(held: Any) -> int:
    return held.size if isinstance(held, np.ndarray) else len(held)


def _same(held: Any, before: Any) -> bool:
    """Entry by entry the same objects, in the same order."""
    if isinstance(held, np.ndarray):
        return not held.flags.writeable or (held.dtype != object and np.array_equal(held, before))
    if len(held) != len(before):
        return False
    return all(a is b for a, b in zip(_entries(held), _entries(before), strict=True))


def _entries(held: Any) -> Iterator[Any]:
    return iter([each for item in held.items() for each in item] if isinstance(held, dict) else held)
