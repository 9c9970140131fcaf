"""The optimizer's terms on flat vectors: the operators whose top eigenvalues are `stability` and `preconditioned`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diagnostics.curvature.operators import Layout, Matvec
from diagnostics.curvature.stability import Number, Terms


@dataclass(frozen=True)
class Scaling:
    """Flat (n,) tensors, or plain numbers where all coordinates agree (SGD), which spares the passes over memory."""

    response: Number  # R
    preconditioner: Number  # P; inf where the optimizer does not move
    progress: Number  # eta F(1) / P
    coupled: Number  # W
    factor: float | None  # c with R = c / P everywhere; None where groups differ
    constant: float | None  # b with eta F(1) / P = b / P everywhere; None where groups differ
    gain: float  # F(1); NaN where groups differ
    oscillation: float
    sign: float  # -1 where the optimizer maximizes

    @property
    def plain(self) -> bool:
        """P = 1: the preconditioned Hessian is the Hessian."""
        return isinstance(self.preconditioner, float) and self.preconditioner == 1.0

    @property
    def undecayed(self) -> bool:
        return isinstance(self.coupled, float) and self.coupled == 0.0

    def preconditioned(self, hessian: Matvec) -> Matvec:
        """P^-1/2 H P^-1/2."""
        return _between(hessian, _root(1 / self.preconditioner), 0.0, self.sign)

    def stability(self, hessian: Matvec) -> Matvec:
        """R^1/2 (H + W) R^1/2."""
        return _between(hessian, _root(self.response), self.coupled, self.sign)

    def moving(self, hessian: Matvec) -> Matvec:
        """(eta F(1) / P)^1/2 H (eta F(1) / P)^1/2."""
        return _between(hessian, _root(self.progress), 0.0, self.sign)

    def into(self, displacement: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """P^1/2 u: a displacement in the coordinates of `preconditioned`."""
        root = _root(self.preconditioner)
        return displacement * root if isinstance(root, float) else torch.where(root.isinf(), 0, displacement * root)

    def gradient(self, gradient: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """P^-1/2 g: a gradient in the same coordinates."""
        return gradient * _root(1 / self.preconditioner)


def scaling(terms: Sequence[Terms], layout: Layout) -> Scaling:
    factors = {
        t.rate * t.alternating / (2 - t.rate * t.decoupled) for t in terms if not isinstance(t.alternating, Tensor)
    }
    constants = {t.rate * t.constant for t in terms if not isinstance(t.constant, Tensor)}
    gains = {t.constant for t in terms if not isinstance(t.constant, Tensor)}
    tensors = any(isinstance(t.alternating, Tensor) for t in terms)
    return Scaling(
        response=_flat([t.response for t in terms], layout),
        preconditioner=_flat([t.preconditioner for t in terms], layout),
        progress=_flat([t.progress for t in terms], layout),
        coupled=_flat([t.coupled for t in terms], layout),
        factor=None if tensors else _only(factors),
        constant=None if tensors else _only(constants),
        gain=float("nan") if tensors else _only(gains) or float("nan"),
        oscillation=min(t.oscillation for t in terms),
        sign=_sign(terms),
    )


def _sign(terms: Sequence[Terms]) -> float:
    """Some groups minimizing and others maximizing is a game, with no symmetric operator: NaN."""
    signs = {t.sign for t in terms}
    return signs.pop() if len(signs) == 1 else float("nan")


def _only(values: set[float]) -> float | None:
    return next(iter(values)) if len(values) == 1 else None


def _flat(numbers: Sequence[Number], layout: Layout) -> Number:
    if not any(isinstance(x, Tensor) for x in numbers) and len(set(numbers)) == 1:
        return float(numbers[0])
    parts = [
        x if isinstance(x, Tensor) else torch.full(shape, x, dtype=layout.dtype, device=layout.device)
        for x, shape in zip(numbers, layout.shapes, strict=True)
    ]
    return layout.flatten(parts)


def _root(x: Number) -> Number:
    return x.sqrt() if isinstance(x, Tensor) else x**0.5


def _between(hessian: Matvec, root: Number, decay: Number, sign: float) -> Matvec:
    """v -> root (sign H + decay) root v."""
    simple = isinstance(decay, float) and decay == 0.0
    outer: Callable[[Tensor], Tensor] = lambda w: w * (sign * root)  # noqa: E731

    def product(v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        inner = v * root
        return outer(hessian(inner)) if simple else outer(hessian(inner) + sign * decay * inner)

    return product
