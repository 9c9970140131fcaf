"""The optimizer's terms on flat vectors: the operators whose top eigenvalues are `stability` and `preconditioned`."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from diagnostics.curvature.layout import Layout, Matvec
from diagnostics.curvature.stability import Number, Terms

CLOSE = 1e-2  # decoupled weight decay of some groups only changes R by half of rate times decay


@dataclass(frozen=True)
class Scaling:
    """Flat (n,) tensors, or plain numbers where all coordinates agree (SGD), which spares passes over memory."""

    response: Number  # R
    preconditioner: Number  # P; inf where the optimizer does not move
    progress: Number  # eta F(1) / P
    coupled: Number  # W
    factor: float  # c with R = c / P everywhere; NaN where groups differ
    constant: float  # b with eta F(1) / P = b / P everywhere; NaN where groups differ
    gain: float  # F(1); NaN where groups differ
    oscillation: float
    sign: float = 1.0  # -1 where the optimizer maximizes; NaN where some groups do and others do not
    known: bool = True  # False: no stability ratio; P = 1
    about: float = math.nan  # c where groups differ in it by less than `CLOSE`; NaN where by more

    @property
    def plain(self) -> bool:
        """P = 1: the preconditioned Hessian is the Hessian."""
        return isinstance(self.preconditioner, float) and self.preconditioner == 1.0

    @property
    def shift(self) -> float:
        """d with s = c (top eigenvalue of P^-1/2 H P^-1/2 + d), where it is that simple, else NaN."""
        uniform = isinstance(self.coupled, float) and (self.plain or self.coupled == 0.0)
        return float(self.coupled) if uniform and self.sign == 1.0 else math.nan

    def lasting(self) -> "Scaling":
        """What is needed after an estimate: not R, nor eta F(1) / P where P tells it; each may be as long as theta."""
        return replace(self, response=math.nan, progress=self.progress if math.isnan(self.constant) else math.nan)

    def to(self, device: torch.device) -> "Scaling":
        """On another device, for a scaling that is `lasting`."""
        moved = {name: _moved(getattr(self, name), device) for name in ("preconditioner", "progress", "coupled")}
        return replace(self, **moved)

    def preconditioned(self, hessian: Matvec) -> Matvec:
        """P^-1/2 H P^-1/2."""
        return hessian if self.plain else _between(hessian, _root(1 / self.preconditioner), 0.0, 1.0)

    def stability(self, hessian: Matvec) -> Matvec:
        """R^1/2 (H + W) R^1/2; of -H where the optimizer maximizes."""
        return _between(hessian, _root(self.response), self.coupled, self.sign)

    def moving(self, hessian: Matvec) -> Matvec:
        """(eta F(1) / P)^1/2 H (eta F(1) / P)^1/2."""
        return _between(hessian, _root(self.progress), 0.0, self.sign)

    def growing(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """R^1/2 w: of an eigenvector of `stability` the direction of the weights."""
        return vector * _root(self.response)

    def pushed(self, product: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """(eta F(1) / P)^1/2 H u."""
        known = not math.isnan(self.constant)
        return product * _root(self.constant / self.preconditioner if known else self.progress)

    @property
    def metric(self) -> Number:
        """P, 0 where the optimizer does not move: u'Pu is the squared length of a displacement as it sees it."""
        p = self.preconditioner
        if isinstance(p, Tensor):
            return torch.where(p.isinf(), 0.0, p)
        return 0.0 if math.isinf(p) else p

    @property
    def still(self) -> Number:
        """1 where the optimizer does not move, else 0."""
        p = self.preconditioner
        return p.isinf().to(p.dtype) if isinstance(p, Tensor) else float(math.isinf(p))

    def into(self, displacement: Float[Tensor, "*k n"]) -> Float[Tensor, "*k n"]:
        """P^1/2 u: a displacement in the coordinates of `preconditioned`."""
        return displacement * _root(self.metric)

    def gradient(self, gradient: Float[Tensor, "*k n"]) -> Float[Tensor, "*k n"]:
        """P^-1/2 g: a gradient in the same coordinates."""
        return gradient * _root(1 / self.preconditioner)


UNKNOWN = Scaling(1.0, 1.0, 1.0, 0.0, math.nan, math.nan, math.nan, math.nan, known=False)


def scaling(terms: Sequence[Terms], layout: Layout) -> Scaling:
    """`layout` without parameters in it raises before this is called, so `terms` is not empty."""
    moving = [t for t in terms if not _stands(t)] or list(terms)  # what an unused tensor would do is no matter
    factors = [t.rate * t.alternating / (2 - t.rate * t.decoupled) for t in moving]
    return Scaling(
        response=_flat([t.response for t in terms], layout),
        preconditioner=_flat([t.preconditioner for t in terms], layout),
        progress=_flat([t.progress for t in terms], layout),
        coupled=_flat([t.coupled for t in terms], layout),
        factor=_only(factors),
        constant=_only(t.rate * t.constant for t in moving),
        gain=_only(t.constant for t in moving),
        oscillation=min(t.oscillation for t in moving),
        sign=_only(t.sign for t in moving),
        about=_about(factors),
    )


def _stands(terms: Terms) -> bool:
    """Whether the optimizer has never seen a gradient of this tensor."""
    return isinstance(terms.preconditioner, float) and math.isinf(terms.preconditioner)


def _only(values: Iterable[float]) -> float:
    different = set(values)
    return different.pop() if len(different) == 1 else math.nan


def _about(numbers: Sequence[float]) -> float:
    close = max(numbers) - min(numbers) <= CLOSE * max(numbers)
    return max(numbers) if close else math.nan  # the largest: it is unstable first


def _flat(numbers: Sequence[Number], layout: Layout) -> Number:
    if not any(isinstance(x, Tensor) for x in numbers) and len(set(numbers)) == 1:
        return float(numbers[0])
    parts = [
        x if isinstance(x, Tensor) else torch.full(shape, x, dtype=layout.dtype, device=layout.device)
        for x, shape in zip(numbers, layout.shapes, strict=True)
    ]
    return layout.flatten(parts)


def _moved(x: Number, device: torch.device) -> Number:
    return x.to(device) if isinstance(x, Tensor) else x


def _root(x: Number) -> Number:
    return x.sqrt() if isinstance(x, Tensor) else x**0.5


def _between(hessian: Matvec, root: Number, decay: Number, sign: float) -> Matvec:
    """v -> root (sign H + decay) root v."""

    def product(v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        inner = v * root
        outer = hessian(inner) * sign
        return (outer if isinstance(decay, float) and decay == 0.0 else outer + decay * inner) * root

    return product
