"""Which entry of a tensor belongs to which unit of a layer, while reshaping, transposing and splitting move them about.

Attention splits a layer's units into heads, moves them and joins them again. All of these are views, so the places are
kept as a view too: a tensor on the meta device, which holds no data, whose strides map an entry's index to a unit's
number (stride 0 along batch and time). The call that moved the tensor is repeated on it.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor


def last(shape: torch.Size) -> Tensor:
    """Units along the last dimension, as a linear layer leaves them."""
    return of(shape, (0,) * (len(shape) - 1) + (1,))


def of(shape: torch.Size, strides: tuple[int, ...], offset: int = 0) -> Tensor:
    units = 1 + offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.empty(units, device="meta").as_strided(shape, strides, offset)


def moved(function: Callable, args: tuple, kwargs: dict[str, Any], places: Tensor) -> list[Tensor] | None:
    """Places after the call, one a result; `None` where a copy was made or units and positions were mixed, which no
    strides describe, or where a single number is left, which has none."""
    try:
        found = function(places, *args[1:], **kwargs)
    except RuntimeError:  # a view that the tensor's own strides allow, and these do not
        return None
    results = [found] if isinstance(found, Tensor) else list(found)
    return results if all(each.is_meta and each._is_view() and each.dim() for each in results) else None


def scrambles(before: torch.Size, after: torch.Size, channels_first: bool = False) -> bool:
    """Whether a view puts an axis where a transpose was meant: it leaves the numbers where they are, so that each place
    gets those of others. Equal sizes cannot tell.

    It gives the sizes another order; takes channels, before the positions, for the last axis, or the last axis for
    channels before positions; or splits units into heads, or joins them, across the axis of time.
    """
    old, new = [n for n in before if n > 1], [n for n in after if n > 1]
    if old != new and sorted(old) == sorted(new):
        return True
    if channels_first:
        return _channels_last(before, new)
    return _channels_second(before, after) or _splits_heads(old, new) or _splits_heads(new, old)


def _channels_last(before: torch.Size, new: list[int]) -> bool:
    """(batch, channels, positions ...) as rows of channels. With channels that are a multiple of the positions it may
    be their groups that are taken apart."""
    if len(before) < 3:
        return False
    batch, channels, positions = before[0], before[1], prod(before[2:])
    rows = ([batch * positions, channels], [n for n in (batch, positions, channels) if n > 1])
    inner = {prod(before[at:]) for at in range(2, len(before))}
    return positions > 1 < channels and new in rows and channels % positions > 0 and channels not in inner


def _channels_second(before: torch.Size, after: torch.Size) -> bool:
    """(batch, positions, units) as (batch, units, height, width). Where the last axis keeps its size, it is the
    positions that are taken apart."""
    if len(before) < 3 or len(after) != 4 or before[0] != after[0] or before[-1] != after[1]:
        return False
    positions, units = prod(before[1:-1]), before[-1]
    return positions > 1 < units and positions == prod(after[2:]) and units not in (positions, after[-1])


def _splits_heads(whole: list[int], parts: list[int]) -> bool:
    """(..., time, units) as (..., heads, time, units of a head): the heads are parts of the time. Where all but the
    last axis stay what they are, it is the units that are taken apart."""
    if len(whole) < 2 or len(parts) - len(whole) not in (0, 1) or parts[: len(whole) - 1] == whole[:-1]:
        return False
    if whole[-2] != parts[-2] or whole[-1] % parts[-1]:
        return False
    heads = whole[-1] // parts[-1]
    return heads not in (1, whole[-2]) and prod(parts[:-2]) == heads * prod(whole[:-2])


def units(places: Tensor) -> tuple[Tensor, Tensor]:
    """The units that a part of a tensor holds, in the order of its dimensions, and places that number them so."""
    size = [n if stride else 1 for n, stride in zip(places.shape, places.stride(), strict=True)]
    least = int(places.storage_offset())
    last = least + sum((n - 1) * stride for n, stride in zip(size, places.stride(), strict=True))
    number = torch.arange(last + 1)
    strides = tuple(prod(size[at + 1 :]) if stride else 0 for at, stride in enumerate(places.stride()))
    return number.as_strided(size, places.stride(), least).flatten(), of(places.shape, strides)


def heads(places: Tensor) -> int | None:
    """Number of equal blocks of units that lie side by side in other dimensions than the last; `None` if they do not
    follow each other."""
    *others, last = zip(places.shape, places.stride(), strict=True)
    blocks = [(n, stride) for n, stride in others if stride and n > 1]
    for _, stride in blocks:
        if stride != last[0] * prod(m for m, s in blocks if s < stride):
            return None
    return prod(n for n, _ in blocks) if last[1] == 1 else None


def is_last(places: Tensor) -> bool:
    """Whether the units lie along the last dimension alone, in order."""
    *others, (_, stride) = zip(places.shape, places.stride(), strict=True)
    return bool(stride == 1 and places.storage_offset() == 0) and not any(s for n, s in others if n > 1)
