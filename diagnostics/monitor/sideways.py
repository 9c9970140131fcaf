"""Vectors that were made length 1 along the batch, and then compared with each other as if each were of length 1."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions
from diagnostics.monitor.masks import MASKING

EXAMPLES = 8  # fewer may be something else than a batch
_LENGTHS = {Tensor.norm, torch.norm, torch.linalg.norm, torch.linalg.vector_norm}
_JOINING = {torch.cat, torch.vstack}
_COMPARING = functions.INNER | functions.LINEAR
_KEEPING = functions.GATING | functions.DIVIDING | functions.NEGATING | functions.ADDING | functions.LAYOUT | MASKING
_ALONG_BATCH = (0, -2)


class Sideways:
    """Of one forward. `told`: whether a call that expects logits was given inner products of such vectors."""

    def __init__(self) -> None:
        self.told = False
        self._lengths = WeakTensorKeyDictionary()  # of each feature, over the batch
        self._vectors = WeakTensorKeyDictionary()
        self._scores = WeakTensorKeyDictionary()

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if not isinstance(out, Tensor) or not args:
            return
        x = args[0]
        if func in _JOINING:
            if isinstance(x, list | tuple) and all(each in self._vectors for each in x):
                self._vectors[out] = True
        elif not isinstance(x, Tensor):
            return
        elif _is_batch(x) and func in _LENGTHS:
            if functions.argument(args, kwargs, 2, "dim") in _ALONG_BATCH:
                self._lengths[out] = True
        elif _is_batch(x) and self._is_divided(func, args, kwargs):
            self._vectors[out] = True
        elif (x in self._vectors and func in _COMPARING) or (x in self._scores and func in _KEEPING):
            self._scores[out] = True

    def logits(self, x: Tensor) -> None:
        self.told |= x in self._scores

    def _is_divided(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
        if func is F.normalize:
            return functions.argument(args, kwargs, 2, "dim", 1) in _ALONG_BATCH
        by = args[1] if func in functions.DIVIDING and len(args) > 1 else None
        return isinstance(by, Tensor) and by in self._lengths


def _is_batch(x: Tensor) -> bool:
    """Not weights, of which each column may be a vector."""
    return x.dim() == 2 and len(x) >= EXAMPLES and x.requires_grad and not isinstance(x, nn.Parameter)
