"""Where a forward cuts its graph: the parameters behind a tensor that is detached and goes on into a layer."""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import losspath

CUTS = {torch.detach, torch.detach_, Tensor.detach, Tensor.detach_, Tensor.data.__get__}  # type: ignore
LONGEST = 2000  # nodes walked from one cut, and a tenth of what is walked in all


class Cuts:
    """`lost`: identities of parameters. A target, or what is only logged, meets no parameter again."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self._behind = WeakTensorKeyDictionary()  # of tensors without a graph: the parameters they were computed from
        self._left = 10 * LONGEST  # nodes to be walked: a loop may detach its state at every step

    def before(self, x: Any) -> set[int]:
        """What is about to be cut off with a tensor, which may be detached in place."""
        start = None
        with contextlib.suppress(RuntimeError):  # a view of what was changed in place has no history to be asked for
            start = x.grad_fn if isinstance(x, Tensor) else None
        seen: set[Any] = set()
        nodes = losspath.walk(start, seen, min(LONGEST, self._left))
        found = {id(node.variable) for node in nodes if hasattr(node, "variable")}
        self._left -= len(seen)
        return found

    def follow(self, given: Iterable[Tensor], results: Iterable[Tensor], cut: set[int], meets_parameters: bool) -> None:
        """One call: `cut` of its input by itself, or by what was detached before."""
        behind = cut.union(*(self._behind[tensor] for tensor in given if tensor in self._behind))
        if behind and meets_parameters:
            self.lost |= behind
        elif behind:
            for result in results:
                self._behind[result] = behind
