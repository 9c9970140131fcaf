"""Products by central differences of gradients, where a second backward is impossible or wrong.

Two gradients a product, both from the same random state. On smooth losses the error is small and is measured; on ReLU
nets it stays at a few per cent whatever the step, because a kink is curvature at any finite distance.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diagnostics.curvature.backwards import leaves, unkept
from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.errors import CurvatureError
from diagnostics.curvature.layout import Closure, Layout, Total, is_sharded, local, loss_of
from diagnostics.curvature.rewrites import Rewrites

STEPS = (1e-2, 1e-3, 1e-4, 1e-5)  # of the weights' norm (at least 1)


class Differences:
    """The step is the one whose product agrees best with the next smaller one; `error` is by how much they differ."""

    method = "differences"
    low_precision = False

    def __init__(self, closure: Closure, layout: Layout, model: nn.Module, total: Total | None = None):
        """`total` sums over shards, which must all take the same step."""
        self._closure, self.layout, self._model, self._total = closure, layout, model, total
        self._origin = [local(p.detach()).clone() for p in layout.parameters]  # one vector of memory
        self.loss, self.constant, self.gradient = self._evaluate()
        self._length, self.error = self._best_step()

    def __call__(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self._product(v, self._length)

    def _product(self, v: Tensor, length: float) -> Tensor:
        step = length / max(self._norm(v), 1e-30)
        ahead, behind = self._gradient_at(v, step), self._gradient_at(v, -step)
        return ahead.sub_(behind).div_(2 * step)

    def _best_step(self) -> tuple[float, float]:
        """Eight gradients, once per operator."""
        size = max(1.0, self._norm(self.layout.flatten(self._origin)))
        g = self.gradient
        v = g if self._norm(g) > 0 else torch.ones_like(g)
        products = [self._product(v, step * size) for step in STEPS]
        scale = max(self._norm(product) for product in products) or 1.0
        changes = [self._norm(a - b) / scale for a, b in pairwise(products)]
        best = min(range(len(changes)), key=changes.__getitem__)
        return STEPS[best] * size, changes[best]

    def _norm(self, v: Tensor) -> float:
        square = torch.dot(v, v)
        return float(self._total(square) if self._total else square) ** 0.5

    def _gradient_at(self, v: Tensor, step: float) -> Tensor:
        try:
            parts = zip(self._origin, self.layout.split(v), strict=True)
            self.layout.put([origin.add(part, alpha=step) for origin, part in parts])
            return self._evaluate()[2]
        finally:
            self.layout.put(self._origin)

    def _evaluate(self) -> tuple[float, bool, Tensor]:
        """Loss, whether it depends on nothing, and gradient at the weights as they are."""
        # The inner context restores the random state, so that all gradients see the same dropout mask.
        with undisturbed(self._model, self._closure), torch.enable_grad():
            with Rewrites():
                loss = loss_of(self._closure)
            constant = loss.grad_fn is None
            gradients = [None] * len(self.layout.parameters) if constant else self._differentiate(loss)
            return float(loss.detach()), constant, self.layout.flatten(gradients)

    def _differentiate(self, loss: Tensor) -> Sequence[Tensor | None]:
        parameters = self.layout.parameters
        if any(is_sharded(p) for p in parameters):
            return by_backward(loss, self._model, parameters)
        try:
            return torch.autograd.grad(loss, parameters, allow_unused=True)
        except RuntimeError as error:
            if "heckpoint" not in str(error):
                raise CurvatureError(f"the loss cannot be differentiated: {error}") from error
        return by_backward(loss_of(self._closure), self._model, parameters)


def by_backward(loss: Tensor, model: nn.Module, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients through `.grad`, which is put back: reentrant checkpoints and sharded parameters know no other way."""
    reached = list({id(p): p for p in [*model.parameters(), *parameters, *leaves(loss)]}.values())
    saved = [p.grad for p in reached]
    for p in reached:
        p.grad = None
    try:
        unkept(loss)
        return [p.grad for p in parameters]
    finally:
        for p, grad in zip(reached, saved, strict=True):
            p.grad = grad
