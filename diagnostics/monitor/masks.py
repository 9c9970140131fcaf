"""Which tokens a mask of attention leaves in sight: by mistake the padding alone, where it means the opposite.

True is "left out" in `key_padding_mask` and `masked_fill`, "takes part" in `scaled_dot_product_attention` and in what
tokenizers make.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics.monitor import functions

MASKING = {Tensor.masked_fill, Tensor.masked_fill_, torch.masked_fill}
LOW = -1e4  # a score that no softmax hears
ZEROS = -1  # the name of rows of zeros, where there are rows of numbers in place of tokens
KINDS = 3  # of tokens left out: so many are no padding
LEAST = 16  # tokens in sight, so that they are not one kind by chance


class Masks:
    """Tokens that are embedded, or rows of numbers that a layer reads, and which keys of each sequence attention leaves
    out. Small, and held for a forward."""

    def __init__(self) -> None:
        self._tokens: list[Tensor] = []  # (rows, length)
        self._left_out: list[Tensor] = []

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        if func is F.embedding:
            tokens = functions.argument(args, kwargs, 0, "input")
            self._tokens += [tokens.detach().clone()] if tokens.dim() == 2 else []
        elif func is F.linear and not self._tokens:
            self._tokens += _named(functions.argument(args, kwargs, 0, "input"))
        elif func in functions.MULTI_HEAD:
            self._add(kwargs.get("key_padding_mask"), True)
        elif func in functions.ATTENTION:
            self._add(_a_row(functions.argument(args, kwargs, 3, "attn_mask")), False)
        elif func in MASKING:
            value = functions.argument(args, kwargs, 2, "value")
            if isinstance(value, int | float) and value <= LOW:
                self._add(_a_row(functions.argument(args, kwargs, 1, "mask")), True)

    def _add(self, mask: Tensor | None, true_is_out: bool) -> None:
        if mask is not None and mask.dim() == 2:
            out = mask <= LOW if mask.is_floating_point() else mask.bool() == true_is_out
            self._left_out.append(out.detach().clone())

    def padding_alone(self) -> list[int]:
        """The one kind of token that is in sight, and how many kinds are not; empty where it is as it should be, in one
        layer at least: the next may gather what was read at the marks between sentences."""
        found = list(self._told())
        return found[0] if found and all(found) else []

    def _told(self) -> Iterator[list[int]]:
        """Of each mask and the tokens that it fits. Of as many sequences as tokens in each, both ways: one is meant."""
        for out in self._left_out:
            for tokens in self._tokens:
                ways = [_alone(each, out) for each in (tokens, tokens.t()) if each.shape == out.shape]
                if ways:
                    yield max(ways, key=len)


def _named(x: Any) -> list[Tensor]:
    """Data (rows, length, features) as if they were tokens: those of zeros are of one kind, all others of their own."""
    if type(x) is not Tensor or x.is_nested or x.dim() != 3 or x.requires_grad or not x.numel():
        return []
    places = x[..., 0].numel()
    kinds = torch.arange(places, device=x.device).reshape(x.shape[:2])
    return [torch.where((x == 0).all(-1), ZEROS, kinds)]


def _a_row(mask: Any) -> Tensor | None:
    """Of one mask for all queries of a sequence, (rows, 1, ..., length): (rows, length)."""
    if not isinstance(mask, Tensor) or mask.dim() < 3 or any(size != 1 for size in mask.shape[1:-1]):
        return None
    return mask.flatten(0, -2)


def _alone(tokens: Tensor, out: Tensor) -> list[int]:
    """A mark that all of a text asks stands once in it; of padding there is more."""
    seen = tokens[~out]
    if len(seen) < LEAST or bool((seen != seen[0]).any()) or int((~out).sum(1).max()) < 2:
        return []
    kinds = len(tokens[out].unique())
    return [int(seen[0]), kinds] if kinds >= KINDS else []
