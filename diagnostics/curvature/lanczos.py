"""Eigenvalues at the ends of the spectrum from products alone, with residuals.

One growing orthonormal basis V (rows) with T = V H V' of the vectors already multiplied by H. Started from one vector
it is Lanczos with reorthogonalization, full or, where that is as exact, of every second vector; started from several it
is band Lanczos (Ruhe, Math. Comp. 33, 1979). More vectors may be added at any time: a warm start, the gradient, a
random vector in the complement that finds further copies of repeated eigenvalues. When memory ends, the basis is
compressed to its best Ritz vectors (thick restart, Wu & Simon, SIAM J. Matrix Anal. 22, 2000). Sees only `matvec`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diagnostics.curvature.errors import NonFiniteProduct
from diagnostics.curvature.layout import Matvec, Total

DEFECT = 2e-3  # an exact product's asymmetry is 1e-6; a wrong double backward's 6e-3 and more
TESTED = 5  # products tested for symmetry; in later ones lost orthogonality, which does no harm, would look the same
NEW = 1e-3  # of a vector's length: less is not worth a product
ENOUGH = 0.1  # what a pass may subtract, relative to what it leaves, without making orthogonality worse
# What orthogonality may be lost where a vector skips its pass over the whole basis. The projected matrix is off by its
# square (Simon, Linear Algebra Appl. 61, 1984); reading the whole basis costs a small network a third of a product.
LOST = 1e-3


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs of a basis, values descending. A residual r proves an eigenvalue within r of the value."""

    values: np.ndarray  # (m,)
    coefficients: np.ndarray  # (m, m): column i holds pair i in the basis
    residuals: np.ndarray  # (m,) ||H v - theta v|| of the unit vector

    @property
    def errors(self) -> np.ndarray:
        """(m,) how far a value may be off, the gap taken to the nearest other one: less than the residual r, and than
        r^2 / gap (Li & Li, Linear Algebra Appl. 395, 2005)."""
        if len(self.values) < 2:
            return self.residuals
        gaps = np.full(len(self.values) + 1, np.inf)
        gaps[1:-1] = self.values[:-1] - self.values[1:]
        nearest, r = np.minimum(gaps[:-1], gaps[1:]), self.residuals
        return 2 * r * r / np.maximum(nearest + np.sqrt(nearest**2 + 4 * r * r), np.finfo(float).tiny)

    def converged(self, tolerance: float) -> np.ndarray:
        """(m,) whether a value is off by less than its size times the tolerance."""
        return self.errors <= tolerance * np.abs(self.values)


class Krylov:
    """The basis and its projected matrix; `step` is one product.

    `chain` holds the recurrence coefficients since the last start vector: what is certain about that start (quadrature,
    the chance of having missed something) follows from them.
    """

    def __init__(
        self, matvec: Matvec, like: Float[Tensor, " n"], capacity: int, total: Total | None = None, exact: bool = True
    ):
        """`like` gives length, type and device; `capacity` rows of memory; `total` sums inner products over ranks;
        `exact`: products are those of one symmetric matrix, but for rounding."""
        self.matvec, self.total, self.exact = matvec, total or _identity, exact
        self.dimension = int(self.total(torch.tensor(like.numel(), device=like.device)))
        self.capacity = min(capacity, self.dimension + 1)
        self.basis = like.new_empty(self.capacity, like.numel())  # O(capacity n), touched row by row
        self.projected = np.zeros((self.capacity, self.capacity))
        self.size = self.done = self.products = 0
        self.scale = 0.0  # largest ||Hv|| seen
        self.defect = 0.0  # largest |u'Hv - v'Hu| / ||Hv|| over pairs of the first basis vectors
        self.asymmetric = False  # by more than rounding explains
        self.eps = torch.finfo(like.dtype).eps
        self.rounding = 20 * self.eps
        self.restarted = False
        self.skipped = False  # the last vector's pass over the whole basis
        self.lost = 0.0  # orthogonality, by the last pass that was skipped
        self.starts: list[int] = []  # the row of each start vector: the rows before it had been multiplied
        self.chain: list[tuple[float, float]] = []
        self.chain_whole = True  # until a thick restart, which ends the three-term recurrence

    @property
    def exhausted(self) -> bool:
        """No vector is left to multiply: the basis is an invariant subspace (or all of the space)."""
        return self.done == self.size

    @property
    def has_room(self) -> bool:
        """For a basis of the whole space."""
        return self.capacity > self.dimension

    @property
    def complete(self) -> bool:
        """The basis is of the whole space: nothing is hidden from it."""
        return self.done == self.dimension

    def extend(self, vector: Float[Tensor, " n"]) -> float:
        """Add a start vector, to be multiplied next; returns the share of its length that was new (0: not added)."""
        w = vector.to(self.basis.dtype, copy=True)
        length = self.norm(w)
        if self.size == self.capacity < self.dimension:
            self.compress()
        if length == 0 or self.size == self.dimension:
            return 0.0
        w /= length
        new = self._orthogonalize(w)[1]
        if new < NEW:
            return 0.0
        self._append(w, new)
        self.chain, self.chain_whole = [], True
        self.starts.append(self.done)
        return new

    def step(self) -> None:
        """Multiply the next vector and append what is new in the product."""
        if self.size == self.capacity <= self.dimension:
            self.compress()
        self.products += 1
        j = self.done
        coefficients, length = self._enter(j, self.matvec(self.basis[j]))
        if 0 < j < TESTED and self.scale > 0:
            self._test_symmetry(j, coefficients, length)

    def know(self, vectors: Float[Tensor, "k n"], products: Float[Tensor, "k n"]) -> None:
        """Start an empty basis with orthonormal vectors whose products are known."""
        self.size = self.done = len(vectors)
        self.basis[: self.size] = vectors
        self.chain_whole = False
        for j, product in enumerate(products):
            self._enter(j, product.clone())

    def hold(self, vector: Float[Tensor, " n"]) -> None:
        """Multiply what of a vector lies outside of those that have been, so that it is theirs whole."""
        vector = vector.to(self.basis.dtype)
        self.extend(vector)
        outside = self.total(self.basis[self.done : self.size] @ vector).cpu().double().numpy()
        if np.linalg.norm(outside) > NEW * self.norm(vector):
            self._turn(outside)
            self.step()

    def aim(self) -> None:
        """Turn the vectors that wait so that the residual of the largest Ritz pair is multiplied next (Davidson, J.
        Comput. Phys. 17, 1975, without a preconditioner of its own)."""
        self._turn(self.projected[self.done : self.size, : self.done] @ self.ritz().coefficients[:, 0])

    def _turn(self, direction: np.ndarray) -> None:
        """The vectors that wait, so that the first of them is this combination of theirs."""
        waiting, length = slice(self.done, self.size), np.linalg.norm(direction)
        if len(direction) < 2 or length == 0:
            return
        rows = self.projected[waiting, : self.done]
        axis = direction / length  # of the reflection that takes the direction into the first row
        axis[0] += np.copysign(1.0, axis[0])
        reflection = np.eye(len(axis)) - 2 * np.outer(axis, axis) / (axis @ axis)
        self.basis[waiting] = self._tensor(reflection) @ self.basis[waiting]
        self.projected[waiting, : self.done] = reflection @ rows
        self.chain_whole = False

    def _enter(self, j: int, w: Tensor) -> tuple[np.ndarray, float]:
        """The product w of vector j, which is overwritten; returns its part in the basis and its length."""
        coefficients, left = self._orthogonalize(w, max(0, j - 1) if self.exact else 0)  # nothing lies before
        length = float(coefficients @ coefficients + left**2) ** 0.5
        if not math.isfinite(length):
            raise NonFiniteProduct("a Hessian-vector product is not finite; this estimate is dropped")
        self.scale = max(self.scale, length)
        self.projected[: self.size, j] = coefficients
        self.done = max(self.done, j + 1)
        left = left if left > self.rounding * self.scale and self.size < self.dimension else 0.0
        if left:
            self.projected[self.size, j] = left
            self._append(w, left)
        if self.chain_whole:
            self.chain.append((float(coefficients[j]), left))
        return coefficients, length

    def ritz(self) -> Ritz:
        m = self.done
        block = self.projected[:m, :m]
        values, vectors = eigh((block + block.T) / 2)
        values, vectors = values[::-1], vectors[:, ::-1]
        coupling = self.projected[m : self.size, :m] @ vectors
        return Ritz(values, vectors, np.sqrt((coupling * coupling).sum(0)))

    def vectors(self, coefficients: np.ndarray) -> Float[Tensor, "k n"]:
        """Ritz vectors (rows) from the columns of their coefficients."""
        return self._tensor(coefficients.T) @ self.basis[: len(coefficients)]

    def project(self, vector: Float[Tensor, " n"]) -> np.ndarray:
        """(m,) coefficients of a vector in the vectors already multiplied."""
        return self.total(self.basis[: self.done] @ vector).cpu().double().numpy()

    def compress(self) -> None:
        """Thick restart: keep the Ritz vectors nearest the ends, in half of the rows, and those not yet multiplied."""
        ritz, m, pending = self.ritz(), self.done, self.size - self.done
        chosen = _ends(m, self.capacity // 2)
        s, kept = ritz.coefficients[:, chosen], len(chosen)
        coupling = self.projected[m : self.size, :m] @ s
        waiting = self.basis[m : self.size].clone()
        self.basis[:kept] = self.vectors(s)
        self.basis[kept : kept + pending] = waiting
        self.projected[:] = 0
        self.projected[:kept, :kept] = np.diag(ritz.values[chosen])
        self.projected[kept : kept + pending, :kept] = coupling
        self.done, self.size, self.restarted = kept, kept + pending, True
        self.chain_whole = False

    def _test_symmetry(self, j: int, coefficients: np.ndarray, length: float) -> None:
        difference = float(np.abs(self.projected[j, :j] - coefficients[:j]).max())
        # In the null space a product is rounding, and so is its asymmetry.
        against = max(length, 1e-3 * self.scale)
        self.defect = max(self.defect, difference / against)
        if difference > DEFECT * against:
            # A wrong formula is linear, rounding is not: the product of the same vector, stretched, tells them apart.
            again = self.total(self.basis[: len(coefficients)] @ self.matvec(1.1 * self.basis[j]) / 1.1)
            self.products += 1
            rounding = float(np.abs(again.cpu().double().numpy() - coefficients).max())
            self.asymmetric |= difference > 10 * rounding

    def _orthogonalize(self, w: Tensor, first: int = 0) -> tuple[np.ndarray, float]:
        """Subtract from w, in place, its part in the basis; returns that part and the length of the rest.

        Twice at least: an error in the basis' orthogonality returns, times what was subtracted over what is left. The
        first pass is for the bulk and may start at row `first`; another follows while one subtracts a lot. Every second
        vector may do with the first.
        """
        v = self.basis[: self.size]
        found = self._numbers(self._subtract(w, v[first:]), self._square(w))
        coefficients, left = np.concatenate([np.zeros(first), found[:-1]]), float(found[-1]) ** 0.5
        self.skipped = not self.skipped and self._may_skip(left)
        for _ in range(0 if self.skipped else 3):
            found = self._numbers(self._subtract(w, v), self._square(w))
            again, left = found[:-1], float(found[-1]) ** 0.5
            coefficients += again
            if again @ again <= (ENOUGH * left) ** 2 or left <= self.rounding * self.scale:
                break
        return coefficients, left

    def _may_skip(self, left: float) -> bool:
        """Whether the pass over the whole basis may wait for the next vector: this is a three-term recurrence from one
        start, and what rounding and the vector before the last bring with them is small beside what is left."""
        large = self.dimension > 2 * self.capacity  # in a small space the pass costs nothing, and the chain may end
        if not (large and self.exact and self.chain_whole and len(self.chain) == self.done >= TESTED):
            return False
        brought = self.lost * self.chain[-1][1]
        may = self.rounding * self.scale + brought <= LOST * left
        self.lost = (self.eps * self.scale + brought) / left if may else 0.0  # then this and the next have their pass
        return may

    def _subtract(self, w: Tensor, rows: Tensor) -> Tensor:
        c = self.total(rows @ w)
        w.addmv_(rows.t(), c, alpha=-1)
        return c

    def _append(self, w: Tensor, length: float) -> None:
        """The newest vector is multiplied next: it takes the place of the first one that waits, which waits on."""
        first, last = self.done, self.size
        if first != last:
            self.basis[last] = self.basis[first]
            self.projected[[first, last]] = self.projected[[last, first]]
        torch.div(w, length, out=self.basis[first])
        self.size += 1

    def norm(self, w: Tensor) -> float:
        """Of a vector that the ranks share."""
        return float(self._square(w)) ** 0.5

    def _square(self, w: Tensor) -> Tensor:
        return self.total(torch.dot(w, w).reshape(1))

    def _numbers(self, *found: Tensor) -> np.ndarray:
        return np.array(torch.cat(found).tolist())  # one host sync; on the CPU the fewest calls

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array.copy(), dtype=self.basis.dtype, device=self.basis.device)  # of reversed views too


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values ascending and vectors of a small symmetric matrix, on one thread: from 25 rows on LAPACK wakes others,
    which takes ten times as long as the work, and a hundred times where something else keeps the processors busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    finally:
        torch.set_num_threads(threads)
    return values.numpy(), vectors.numpy()


def _identity(x: Tensor) -> Tensor:
    return x


def _ends(m: int, keep: int) -> np.ndarray:
    """Indices of the largest two thirds of `keep` values and of the smallest third."""
    low = max(1, keep // 3)
    return np.unique(np.r_[0 : min(keep - low, m), max(0, m - low) : m])
