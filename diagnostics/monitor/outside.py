"""What layers are given from outside: data, and all else that no gradient goes to."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_JOINING = {torch.cat, torch.concat, torch.concatenate, torch.hstack}


class Outside:
    """`beside`: what other layers than the first read, by the identity of their weight, where that is asked."""

    def __init__(self, asking: bool) -> None:
        self._asking = asking
        self.beside: dict[int, list[Tensor]] = {}
        self._first: Tensor | None = None
        self._parts = WeakTensorKeyDictionary()

    @property
    def first(self) -> Tensor | None:
        """What the first layer reads; empty where that is no vector of numbers."""
        return None if self._first is None else self._first.detach()

    def follow(self, function: Callable, tensors: Sequence[Tensor], out: Tensor) -> None:
        """Columns beside features: what is put together, some of it learned, is looked at in parts."""
        if self._asking and function in _JOINING and out.requires_grad:
            self._parts[out] = [part for each in tensors for part in self._parts_of(each)]

    def read(self, tensors: Sequence[Tensor], parameters: Sequence[bool], is_first: bool) -> None:
        """What a layer is called with, and which of it are parameters."""
        weight = next(each for each, is_one in zip(tensors, parameters, strict=True) if is_one)
        others = [each for each, is_one in zip(tensors, parameters, strict=True) if not is_one]
        given = [each for each in others if each.is_floating_point() and each.dim() > 1]
        if self._first is None and is_first:
            self._first = given[0] if given else torch.empty(0)
        if not (self._asking and torch.is_grad_enabled()):
            return
        parts = [part for each in given for part in self._parts_of(each)]
        if outside := [each for each in parts if not each.requires_grad and each is not self._first]:
            self.beside.setdefault(id(weight), outside)

    def _parts_of(self, tensor: Tensor) -> list[Tensor]:
        return self._parts.get(tensor) or [tensor]
