"""Where a forward cuts its graph: the parameters behind a tensor that is detached and goes on into a layer."""

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

CUTS = {torch.detach, torch.detach_, Tensor.detach, Tensor.detach_, Tensor.data.__get__}  # type: ignore
LONGEST = 2000  # nodes walked in all


class Cuts:
    """`lost`: identities of parameters. A target, or what is only logged, meets no parameter again."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self._behind = WeakTensorKeyDictionary()  # of tensors without a graph: the parameters they were computed from
        self._walked: set[Any] = set()  # nodes; held, so that none takes another's identity

    def before(self, x: Any) -> set[int]:
        """What is about to be cut off with a tensor, which may be detached in place."""
        node = None
        with contextlib.suppress(RuntimeError):  # a view of what was changed in place has no history to be asked for
            node = x.grad_fn if isinstance(x, Tensor) else None
        waiting, found = [] if node is None else [node], set()
        while waiting and len(self._walked) < LONGEST:
            node = waiting.pop()
            if node not in self._walked:
                self._walked.add(node)
                variable = getattr(node, "variable", None)
                if variable is not None:
                    found.add(id(variable))
                waiting += [following for following, _ in node.next_functions if following is not None]
        return found

    def follow(self, given: Iterable[Tensor], results: Iterable[Tensor], cut: set[int], meets_parameters: bool) -> None:
        """One call: `cut` of its input by itself, or by what was detached before."""
        behind = cut.union(*(self._behind[tensor] for tensor in given if tensor in self._behind))
        if behind and meets_parameters:
            self.lost |= behind
        elif behind:
            for result in results:
                self._behind[result] = behind
