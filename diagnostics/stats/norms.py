"""Norms and inner products of lists of tensors, and the one precision in which all statistics are summed."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

foreach: Any = torch  # its _foreach functions are what torch.optim is made of, but private by name


def wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def squared_norms(tensors: Sequence[Tensor]) -> Float[Tensor, " tensors"]:
    """Squared Euclidean norm of each tensor, accumulated in float32 at least and squared in float64.

    Half precision would overflow; so does float32 only where one tensor's norm is above 1e19.
    """
    norms = _norms(tensors)
    return norms.to(wide(norms.device)).square()


def total_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Euclidean norm of all tensors (of one type, on one device) together: the same in fewer operations."""
    norms = _norms(tensors)
    return torch.linalg.vector_norm(norms, dtype=wide(norms.device))


def _norms(tensors: Sequence[Tensor]) -> Float[Tensor, " tensors"]:
    half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors)
    return torch.stack(foreach._foreach_norm(list(tensors), 2, dtype=torch.float32 if half else None))


def silent_rows(gradient: Tensor) -> Float[Tensor, ""]:
    """How many rows (output units) of a weight's gradient are exactly zero."""
    return (gradient.flatten(1).abs().amax(1) == 0).float().sum()  # seven times as fast as to count what is not zero


def lost_share(change: Tensor, gradient: Tensor) -> Float[Tensor, ""]:
    """Share of the entries with a gradient whose value did not change; NaN if none has one."""
    pushed = gradient != 0
    return (pushed & (change == 0)).sum() / pushed.sum()


def cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Cosine of two vectors that are given in the same pieces."""
    dot = inner(first, second)
    return dot / (inner(first, first) * inner(second, second)).sqrt()


def inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Inner product of two vectors in pieces; the pieces are summed in float64, where there is one."""
    dots = torch.stack([torch.dot(flat(a).float(), flat(b).float()) for a, b in zip(first, second, strict=True)])
    return dots.to(wide(dots.device)).sum()


def flat(tensor: Tensor) -> Float[Tensor, " n"]:
    """One row of numbers; complex numbers as two real ones."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
