"""Eigenvalues at the ends of the spectrum from products alone, with residuals.

One growing orthonormal basis V (rows) with T = V H V' of the vectors already multiplied by H. Started from one vector
it is Lanczos with full reorthogonalization; started from several it is band Lanczos (Ruhe, Math. Comp. 33, 1979). More
vectors may be added at any time: a warm start, the gradient, a random vector in the complement that finds further
copies of repeated eigenvalues. When memory ends, the basis is compressed to its best Ritz vectors (thick restart,
Wu & Simon, SIAM J. Matrix Anal. 22, 2000). Sees only `matvec`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diagnostics.curvature.context import CurvatureError

Matvec = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs of a basis, values descending. A residual r proves an eigenvalue within r of the value."""

    values: np.ndarray  # (m,)
    coefficients: np.ndarray  # (m, m): column i holds pair i in the basis
    residuals: np.ndarray  # (m,) ||H v - theta v|| of the unit vector

    @property
    def errors(self) -> np.ndarray:
        """(m,) min(residual, residual^2 / gap): the error of a value, the gap taken to the nearest other value."""
        if len(self.values) < 2:
            return self.residuals
        steps = -np.diff(self.values)
        gaps = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gaps > self.residuals, self.residuals**2 / gaps, self.residuals)


class Krylov:
    """The basis and its projected matrix; `step` is one product."""

    def __init__(
        self, matvec: Matvec, like: Float[Tensor, " n"], capacity: int, total: Callable[[Tensor], Tensor] | None = None
    ):
        """`like` gives length, type and device; `capacity` the rows of memory; `total` sums inner products over ranks."""
        self.matvec, self.total = matvec, total or _identity
        self.dimension = int(self.total(torch.tensor(like.numel(), device=like.device)))
        self.capacity = min(capacity, self.dimension + 1)
        self.basis = torch.empty(
            self.capacity, like.numel(), dtype=like.dtype, device=like.device
        )  # O(capacity n), touched row by row
        self.projected = np.zeros((self.capacity, self.capacity))
        self.size = self.done = self.products = 0
        self.scale = 0.0  # largest ||Hv|| seen
        self.defect = 0.0  # largest |u'Hv - v'Hu| / ||Hv|| over pairs of basis vectors
        self.restarted = False

    def extend(self, vector: Float[Tensor, " n"]) -> float:
        """Add a vector as the next to be multiplied; returns the share of its norm that was new (0: not added)."""
        w = vector.to(self.basis.dtype, copy=True)
        length = self._norm(w)
        if length == 0 or self.size >= min(self.capacity, self.dimension):
            return 0.0
        w /= length
        new = self._orthogonalize(w)[1]
        new *= self._renormalize(w, new)
        if new < 1e-3:
            return 0.0
        self._append(w)
        self._bring_forward()
        return new

    def step(self) -> None:
        """Multiply the next vector and append what is new in the product."""
        j = self.done
        w = self.matvec(self.basis[j])
        coefficients, left = self._orthogonalize(w)
        length = float(np.hypot(np.linalg.norm(coefficients), left))
        if not np.isfinite(length):
            raise CurvatureError(
                "a Hessian-vector product is not finite; curvature is measured again at the next estimate"
            )
        self.products += 1
        self.scale = max(self.scale, length)
        self.projected[: self.size, j] = coefficients
        if length > 0:
            gap = np.abs(self.projected[j, :j] - self.projected[:j, j])
            self.defect = max(self.defect, float(gap.max(initial=0.0)) / length)
        if left > 1e-6 * self.scale and self.size < min(self.capacity, self.dimension):
            self.projected[self.size, j] = left
            self._append(w / left)
        self.done += 1

    @property
    def exhausted(self) -> bool:
        """No vector is left to multiply: the basis is an invariant subspace (or all of the space)."""
        return self.done == self.size

    def ritz(self) -> Ritz:
        m = self.done
        block = self.projected[:m, :m]
        values, vectors = np.linalg.eigh((block + block.T) / 2)
        values, vectors = values[::-1], vectors[:, ::-1]
        return Ritz(values, vectors, np.linalg.norm(self.projected[m : self.size, :m] @ vectors, axis=0))

    def vectors(self, coefficients: np.ndarray) -> Float[Tensor, "k n"]:
        """Ritz vectors (rows) from the columns of their coefficients."""
        return self._tensor(coefficients.T) @ self.basis[: len(coefficients)]

    def compress(self, keep: int) -> None:
        """Thick restart: keep the `keep` Ritz vectors nearest the ends, and the vectors not yet multiplied."""
        ritz, m, pending = self.ritz(), self.done, self.size - self.done
        chosen = _ends(len(ritz.values), keep)
        s = ritz.coefficients[:, chosen]
        coupling = self.projected[m : self.size, :m] @ s
        self.basis[: len(chosen)] = self.vectors(s)
        self.basis[len(chosen) : len(chosen) + pending] = self.basis[m : self.size].clone()
        self.projected[:] = 0
        self.done, self.size = len(chosen), len(chosen) + pending
        self.projected[: self.done, : self.done] = np.diag(ritz.values[chosen])
        self.projected[self.done : self.size, : self.done] = coupling
        self.restarted = True

    def project(self, vector: Float[Tensor, " n"]) -> np.ndarray:
        """(m,) coefficients of a vector in the vectors already multiplied."""
        return self.total(self.basis[: self.done] @ vector).double().cpu().numpy()

    def _orthogonalize(self, w: Tensor) -> tuple[np.ndarray, float]:
        """Subtract from w, in place, its part in the basis: two matrix products, twice where much cancels."""
        v = self.basis[: self.size]
        c = self.total(v @ w)
        w.addmv_(v.t(), c, alpha=-1)
        coefficients, left = c.double().cpu().numpy(), self._norm(w)  # host sync
        if left < 0.1 * np.linalg.norm(coefficients):
            c = self.total(v @ w)
            w.addmv_(v.t(), c, alpha=-1)
            coefficients, left = coefficients + c.double().cpu().numpy(), self._norm(w)
        return coefficients, left

    def _renormalize(self, w: Tensor, length: float) -> float:
        """Scale to unit norm and orthogonalize once more (a vector mostly inside the basis is left with rounding)."""
        if length == 0:
            return 0.0
        w /= length
        left = self._orthogonalize(w)[1]
        w /= max(left, 1e-30)
        return left

    def _append(self, w: Tensor) -> None:
        self.basis[self.size] = w
        self.size += 1

    def _bring_forward(self) -> None:
        """Make the newest vector the next to be multiplied: swap it with the first one waiting."""
        a, b = self.done, self.size - 1
        if a != b:
            self.basis[[a, b]] = self.basis[[b, a]]
            self.projected[[a, b]] = self.projected[[b, a]]

    def _norm(self, w: Tensor) -> float:
        return float(self.total(torch.dot(w, w))) ** 0.5

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), dtype=self.basis.dtype, device=self.basis.device)


def _identity(x: Tensor) -> Tensor:
    return x


def _ends(m: int, keep: int) -> np.ndarray:
    """Indices of the largest two thirds of `keep` values and of the smallest third."""
    low = max(1, keep // 3)
    return np.unique(np.r_[0 : min(keep - low, m), max(0, m - low) : m])


@dataclass(frozen=True)
class Target:
    """What is wanted of a spectrum, and how exactly."""

    largest: int = 5
    smallest: bool = True
    tolerance: float = 1e-2  # of an eigenvalue, relative to its size
    floor: float = 1e-2  # sizes below this share of the largest count as this share
    max_products: int = 100

    def indices(self, m: int) -> np.ndarray:
        """Positions among m descending Ritz values."""
        wanted = list(range(min(self.largest, m)))
        return np.array(wanted + [m - 1] if self.smallest and m - 1 not in wanted else wanted)

    def met(self, ritz: Ritz, dimension: int) -> bool:
        if len(ritz.values) < min(self.largest + self.smallest, dimension):
            return False
        i = self.indices(len(ritz.values))
        sizes = np.maximum(np.abs(ritz.values[i]), self.floor * np.abs(ritz.values).max())
        return bool((ritz.errors[i] <= self.tolerance * sizes).all())


def solve(krylov: Krylov, target: Target, fresh: Callable[[], Tensor]) -> Ritz:
    """Multiply until the target is met. `fresh` makes random vectors, needed when the basis becomes invariant."""
    limit = krylov.products + target.max_products
    while True:
        if krylov.exhausted and not krylov.extend(fresh()):
            return krylov.ritz()  # the whole space
        if (
            krylov.size >= krylov.capacity
            and krylov.done >= krylov.capacity - 1
            and krylov.capacity <= krylov.dimension
        ):
            krylov.compress(keep=max(target.largest + 3, krylov.capacity // 2))
        krylov.step()
        if krylov.done < min(target.largest + target.smallest, krylov.dimension):
            continue
        ritz = krylov.ritz()
        if target.met(ritz, krylov.dimension) or krylov.products >= limit:
            return ritz
