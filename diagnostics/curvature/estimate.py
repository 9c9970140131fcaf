"""One curvature estimate: closure, model and optimizer in, numbers with their errors out.

The Hessian of the closure's batch at the present weights, in the mode being trained. One retained graph serves every
operator; where the optimizer makes two of them the same up to a factor, one basis serves both.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.curvature.context import CurvatureError, undisturbed
from diagnostics.curvature.lanczos import Krylov, Target, solve
from diagnostics.curvature.operators import Closure, Differences, DoubleBackward, HessianOperator, Layout
from diagnostics.curvature.scaling import Scaling, scaling
from diagnostics.curvature.stability import stability_terms

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """The columns of table `curvature` (their meanings are in `metrics.py`), and what the next estimate starts from."""

    eigenvalues: list[float]
    residuals: list[float]
    smallest: float
    smallest_residual: float
    preconditioned: float
    preconditioned_residual: float
    limit: float
    stability: float
    oscillation_limit: float
    gradient_alignment: float
    products: int
    seconds: float
    method: str
    start: str
    dimension: int
    gain_dc: float
    progress: float
    trace: float = NAN
    trace_error: float = NAN
    frobenius: float = NAN
    stable_rank: float = NAN
    density_nodes: list[float] = field(default_factory=list)
    density_weights: list[float] = field(default_factory=list)
    condition: float = NAN
    flat_gradient_share: float = NAN
    symmetry_defect: float = NAN
    loss_spread: float = NAN
    missed: float = NAN
    # Not recorded:
    notes: tuple[str, ...] = ()  # what a person should know about this estimate
    vectors: Tensor | None = None  # (k, n) unit eigenvectors of `eigenvalues`
    smallest_vector: Tensor | None = None  # (n,)
    preconditioned_vector: Tensor | None = None  # (n,) unit, in the coordinates P^1/2 theta
    scaling: Scaling | None = None
    parameters: tuple[Tensor, ...] = ()  # the parameters themselves, for `follow`
    age: int = 0  # estimates since the last cold start

    def record(self) -> dict[str, Any]:
        """The row for table `curvature`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _UNRECORDED}


_UNRECORDED = {"notes", "vectors", "smallest_vector", "preconditioned_vector", "scaling", "parameters", "age"}


def trained_parameters(optimizer: Optimizer) -> list[Tensor]:
    """What the optimizer changes, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def measure(
    closure: Closure,
    model: nn.Module,
    optimizer: Optimizer,
    learning_rates: Sequence[float],
    *,
    eigenvalues: int = 5,
    tolerance: float = 1e-2,
    previous: Estimate | None = None,
    displacement: Sequence[Tensor] | None = None,
    cold: bool | None = None,
    full: bool = True,
    memory_bytes: int | None = None,
) -> Estimate:
    """`learning_rates`: of the update just made, one a group. `displacement`: recent change of the trained parameters.

    `full=False` measures only what the stability ratio needs. Raises CurvatureError; nothing is changed even then.
    """
    began = time.perf_counter()
    layout = Layout(trained_parameters(optimizer))
    scale = scaling(stability_terms(optimizer, learning_rates), layout)
    with undisturbed(model):
        hessian = _operator(closure, layout, model)
        state = _solve(hessian, layout, scale, Target(eigenvalues, True, tolerance), previous, full)
    return Estimate(
        **state,
        oscillation_limit=scale.oscillation,
        seconds=time.perf_counter() - began,
        method=hessian.method,
        dimension=layout.dimension,
        gain_dc=scale.gain,
        scaling=scale,
        parameters=layout.parameters,
    )


def _operator(closure: Closure, layout: Layout, model: nn.Module) -> HessianOperator:
    try:
        hessian = DoubleBackward(closure, layout)
        hessian(hessian.gradient)
        return hessian
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, CurvatureError):
            raise
        return Differences(closure, layout, model)


def _solve(
    hessian: HessianOperator, layout: Layout, scale: Scaling, target: Target, previous: Estimate | None, full: bool
) -> dict[str, Any]:
    generator = torch.Generator(layout.device).manual_seed(0)

    def fresh() -> Tensor:
        return torch.randn(layout.dimension, generator=generator, dtype=layout.dtype, device=layout.device)

    like = torch.empty(layout.dimension, dtype=layout.dtype, device=layout.device)
    krylov = Krylov(hessian, like, 128)
    krylov.extend(fresh())
    ritz = solve(krylov, target, fresh)
    i = np.arange(min(target.largest, len(ritz.values)))
    vectors = krylov.vectors(ritz.coefficients[:, i])
    bottom = krylov.vectors(ritz.coefficients[:, [-1]])[0]
    g = hessian.gradient
    found: dict[str, Any] = {
        "eigenvalues": ritz.values[i].tolist(),
        "residuals": ritz.residuals[i].tolist(),
        "smallest": float(ritz.values[-1]),
        "smallest_residual": float(ritz.residuals[-1]),
        "gradient_alignment": float((vectors @ g).square().sum() / g.square().sum().clamp_min(1e-38)),
        "vectors": vectors,
        "smallest_vector": bottom,
        "start": "cold",
        "symmetry_defect": krylov.defect,
    }
    products = krylov.products
    top, top_residual, top_vector = ritz.values[0], ritz.residuals[0], vectors[0]
    if not scale.plain:
        other = Krylov(scale.preconditioned(hessian), like, 128)
        other.extend(fresh())
        r = solve(other, Target(1, False, target.tolerance), fresh)
        top, top_residual, top_vector = r.values[0], r.residuals[0], other.vectors(r.coefficients[:, [0]])[0]
        products += other.products
    stability = NAN
    if scale.factor is not None and scale.undecayed:
        stability = scale.factor * top
    else:
        other = Krylov(scale.stability(hessian), like, 128)
        other.extend(fresh())
        r = solve(other, Target(1, False, target.tolerance), fresh)
        stability, products = r.values[0], products + other.products
    limit = NAN if scale.factor is None else 1 / scale.factor - (stability / scale.factor - top)
    found |= {
        "preconditioned": float(top),
        "preconditioned_residual": float(top_residual),
        "preconditioned_vector": top_vector,
        "stability": float(stability),
        "limit": float(limit),
        "progress": float(scale.constant * top) if scale.constant is not None else NAN,
        "products": products,
    }
    return found
