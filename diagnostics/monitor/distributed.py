"""Norms over processes: sharded tensors (FSDP2's DTensor) hold a part each, and a local norm is silently too small.

One reduction of one small vector a call, in which every process takes part.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diagnostics import stats


def squared_norms(
    tensors: Sequence[Tensor | None], like: Sequence[Tensor] | None = None, together: bool = True
) -> Tensor:
    """Squared norm of each whole tensor, zero for `None`. `like`: the sharded tensors whose local parts these are.

    `together`: whether every process asks at once. A sharded tensor's norm is NaN otherwise: one part is not the norm.
    """
    parts = [entries(local(t)) for t in tensors if t is not None]
    if not parts:
        return torch.zeros(len(tensors))
    device = parts[0].device
    if all(t.device == device and t.dtype == parts[0].dtype for t in parts):
        found = stats.squared_norms(parts)
    else:
        found = torch.cat([stats.squared_norms([t]).to(device) for t in parts])
    if len(parts) < len(tensors):
        pieces = iter(found.unbind())
        zero = torch.zeros_like(found[0])
        found = torch.stack([zero if t is None else next(pieces) for t in tensors])
    return _reduced(found, list(like if like is not None else tensors), together)


def _reduced(squares: Tensor, tensors: Sequence[Tensor | None], together: bool) -> Tensor:
    sharded = tuple(map(is_sharded, tensors))
    if not any(sharded):
        return squares
    mask = constant(sharded, squares.device)
    if not together:
        return torch.where(mask, torch.nan, squares)
    sums = torch.where(mask, squares, 0)
    dist.all_reduce(sums)
    return torch.where(mask, sums, squares)


def silent_fractions(gradients: Sequence[Tensor | None], device: torch.device, together: bool = True) -> Tensor:
    """Share of the rows of each whole gradient that are exactly zero; NaN for what has no rows.

    Rows of a tensor that is sharded along another dimension than the first lie on several processes: NaN as well.
    """
    counted = [g is not None and g.dim() > 1 and g.numel() and not g.is_sparse and not _is_split(g) for g in gradients]
    rows = tuple(
        float(g.shape[0]) if g is not None and ok else torch.nan for g, ok in zip(gradients, counted, strict=True)
    )
    zero = torch.zeros((), device=device)
    silent = [
        stats.silent_rows(local(g)).to(device) if g is not None and ok else zero
        for g, ok in zip(gradients, counted, strict=True)
    ]
    return _reduced(torch.stack(silent), gradients, together) / constant(rows, device, torch.float32)


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.bool) -> Tensor:
    """A mask or numbers on the device, made once: making them anew would wait for the device at every step."""
    return torch.tensor(values, device=device, dtype=dtype)


def is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")


def is_sharded(tensor: Tensor | None) -> bool:
    return any(placement.is_shard() for placement in getattr(tensor, "placements", ()))


def _is_split(tensor: Tensor) -> bool:
    return any(placement.is_shard() and not placement.is_shard(0) for placement in getattr(tensor, "placements", ()))


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether each is dense, all of it here, and all are of one type on one device. Asked at every update."""
    first = tensors[0]
    kind, device = first.dtype, first.device
    return all(
        type(t) is Tensor and t.dtype is kind and t.layout is torch.strided and t.device == device for t in tensors
    )


def local(tensor: Any) -> Tensor:
    """This process's part of a DTensor, or the tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def entries(tensor: Tensor) -> Tensor:
    """A sparse embedding gradient's values, summed where a row came twice: they have the gradient's norm."""
    return tensor.coalesce().values() if tensor.is_sparse else tensor
