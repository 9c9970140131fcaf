"""How far one batch's curvature can be trusted: its vectors tried on the independent batches that follow.

The largest eigenvalue of one batch is biased up and the smallest down (Jensen). Rayleigh quotients of its eigenvectors
on other batches are biased the other way, so both together bracket the truth, and a mean quotient below zero by two
standard errors is a valid one-sided test for negative curvature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.estimate import Estimate
from diagnostics.curvature.operators import Closure, DoubleBackward, Layout

NAN = float("nan")


@dataclass(frozen=True)
class Quotients:
    """One independent batch. Holds two vectors of memory until it is combined."""

    largest: float  # v1' H_B v1
    smallest: float  # v_n' H_B v_n
    product: Tensor  # (n,) preconditioned H_B times the preconditioned top eigenvector
    gradient: Tensor  # (n,)
    curvature: float  # its quotient


def follow(closure: Closure, model: nn.Module, estimate: Estimate) -> Quotients:
    """One graph and two products (three for adaptive optimizers) on the batch of `closure`."""
    assert estimate.vectors is not None and estimate.scaling is not None
    layout = Layout(estimate.parameters)
    with undisturbed(model):
        hessian = DoubleBackward(closure, layout)
        top, bottom = estimate.vectors[0], estimate.smallest_vector
        product = hessian(top)
        scaled, v = product, top
        if not estimate.scaling.plain:
            v = estimate.preconditioned_vector
            scaled = estimate.scaling.preconditioned(hessian)(v)
        return Quotients(
            float(top @ product), float(bottom @ hessian(bottom)), scaled, hessian.gradient, float(v @ scaled)
        )


def combine(batches: Sequence[Quotients], estimate: Estimate) -> dict[str, float | int]:
    """The row for table `batches`, without `step` and `origin`."""
    largest, largest_error = _mean([b.largest for b in batches])
    smallest, smallest_error = _mean([b.smallest for b in batches])
    return {
        "batches": len(batches),
        "largest": largest,
        "largest_error": largest_error,
        "smallest": smallest,
        "smallest_error": smallest_error,
    }


def _mean(values: Sequence[float]) -> tuple[float, float]:
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(x.std() / len(x) ** 0.5) if len(x) > 1 else NAN
