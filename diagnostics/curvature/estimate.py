"""The result of one curvature measurement."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from diagnostics.curvature.scaling import Scaling

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """The columns of table `curvature` (`metrics.py` gives their meanings), and what the next estimate starts from."""

    start: str  # "cold" or "warm"
    method: str
    dimension: int
    products: int
    seconds: float
    eigenvalues: list[float] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    smallest: float = NAN
    smallest_residual: float = NAN
    preconditioned: float = NAN
    preconditioned_residual: float = NAN
    limit: float = NAN
    stability: float = NAN
    oscillation_limit: float = NAN
    gain_dc: float = NAN
    progress: float = NAN
    trace: float = NAN
    trace_error: float = NAN
    frobenius: float = NAN
    stable_rank: float = NAN
    density_nodes: list[float] = field(default_factory=list)
    density_weights: list[float] = field(default_factory=list)
    gradient_alignment: float = NAN
    condition: float = NAN
    flat_gradient_share: float = NAN
    symmetry_defect: float = NAN
    loss_spread: float = NAN
    missed: float = NAN
    # Not recorded:
    asymmetric: bool = False  # the products were, by more than rounding: they are wrong
    notes: tuple[str, ...] = ()  # sentences a person should read with this estimate
    vectors: Tensor | None = None  # (k, n) unit eigenvectors of `eigenvalues`
    smallest_vector: Tensor | None = None  # (n,)
    preconditioned_vector: Tensor | None = None  # (n,) unit, in the coordinates P^1/2 theta
    growing_vector: Tensor | None = None  # (n,) R^1/2 w of the top eigenvector w of s, where it has a run of its own
    scaling: Scaling | None = None
    parameters: tuple[Tensor, ...] = ()  # the parameters themselves, for `follow`
    age: int = 0  # estimates since the last cold start
    cold_after: int = 8  # warm estimates allowed before the next cold one
    copies: bool = False  # the last search found repeated eigenvalues
    count: int = 0  # estimates before this one
    tested: frozenset[str] = frozenset()  # autograd functions whose double backward was, against differences

    def lasting(self) -> "Estimate":
        """What the next estimate and the batches until then need of it: `eigenvalues` + 2 vectors, and P if any."""
        return replace(self, scaling=self.scaling and self.scaling.lasting())

    @property
    def bytes(self) -> int:
        """Of its vectors."""
        scale = self.scaling
        optimizer = () if scale is None else (scale.preconditioner, scale.progress, scale.coupled)
        held = (*(getattr(self, name) for name in VECTORS), *optimizer)
        return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))

    def to(self, device: torch.device) -> "Estimate":
        """The same with its vectors on another device: they are waited with, not computed with, most of the time."""
        if self.preconditioned_vector is None or self.preconditioned_vector.device == device:
            return self
        moved: dict[str, Any] = {name: getattr(self, name) for name in VECTORS}
        moved = {name: None if vector is None else vector.to(device) for name, vector in moved.items()}
        return replace(self, **moved, scaling=self.scaling and self.scaling.to(device))

    def record(self) -> dict[str, Any]:
        """The row for table `curvature`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in UNRECORDED}


VECTORS = ("vectors", "smallest_vector", "preconditioned_vector", "growing_vector")
UNRECORDED = {
    *VECTORS,
    "asymmetric",
    "notes",
    "scaling",
    "parameters",
    "age",
    "cold_after",
    "copies",
    "count",
    "tested",
}
