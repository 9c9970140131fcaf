"""Products by central differences of gradients, where a second backward is impossible or wrong.

Two gradients a product, both from the same random state. On smooth losses the error is small and is measured; on ReLU
nets it stays at a few per cent whatever the step, because a kink is curvature at any finite distance.

How far a step goes is judged by the weights that have a gradient: of a large embedding few rows are in a batch, and the
loss hears of nothing else.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.errors import CurvatureError, NonFinite, NonFiniteProduct
from diagnostics.curvature.layout import Closure, Layout, Total, is_sharded, local, loss_of

UNHEARD = 1e-2  # of a vector's length at least counts: what has no gradient here may have one where a long step ends
STEPS = (1e-2, 1e-3, 1e-4, 1e-5)  # of the norm (at least 1) of the weights that have a gradient


class Differences:
    """The step is the one whose product agrees best with the next smaller one; `error` is by how much they differ."""

    method = "differences"
    low_precision = False

    def __init__(self, closure: Closure, layout: Layout, model: nn.Module, total: Total | None = None):
        """`total` sums over shards, which must all take the same step."""
        self._closure, self.layout, self._model, self._total = closure, layout, model, total
        self._origin = [local(p.detach()).clone() for p in layout.parameters]  # one vector of memory
        self._backward = any(is_sharded(p) for p in layout.parameters)
        self._incomplete = False  # some parameters have no gradient
        self.loss, self.constant, self.gradient = self._evaluate()
        if self._incomplete and not self._backward:
            self._go_backward()
        self._heard = self.gradient != 0
        if self._norm(self._heard.to(self.gradient)) == 0:
            self._heard = torch.ones_like(self._heard)
        self._length, self.error = self._best_step()

    def __call__(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self._product(v, self._length)

    def _product(self, v: Tensor, length: float) -> Tensor:
        step = length / max(self._norm(v * self._heard), UNHEARD * self._norm(v), 1e-30)
        ahead, behind = self._gradient_at(v, step), self._gradient_at(v, -step)
        return ahead.sub_(behind).div_(2 * step)

    def disagreement(self, hessian: Callable[[Tensor], Tensor]) -> float:
        """How far other products of the same Hessian are from these, relative to the larger: of a right double backward
        a few times `error` at most."""
        v = self._probe()
        return self._apart(self._product(v, self._length), hessian(v))

    def _best_step(self) -> tuple[float, float]:
        """Eight gradients, once per operator. Of shards all must take the same steps: none is left out there."""
        size, v = max(1.0, self._norm(self.layout.flatten(self._origin) * self._heard)), self._probe()
        products, failures = list[Tensor | None](), list[CurvatureError]()
        for step in STEPS:
            try:
                products.append(self._product(v, step * size))
            except CurvatureError as error:  # a long step may leave where the loss is defined
                if self._total:
                    raise
                products.append(None)
                failures.append(error)
        changes = [self._apart(a, b) for a, b in pairwise(products)]
        best = min(range(len(changes)), key=changes.__getitem__)
        if changes[best] == math.inf:
            raise failures[-1]
        return STEPS[best] * size, changes[best]

    def _apart(self, a: Tensor | None, b: Tensor | None) -> float:
        """Relative to the larger; infinitely far where one is missing."""
        if a is None or b is None:
            return math.inf
        return self._norm(a - b) / (max(self._norm(a), self._norm(b)) or 1.0)

    def _probe(self) -> Tensor:
        """The gradient, which is smoother than most directions, and a random one."""
        g = self.gradient
        noise = torch.randn(len(g), generator=torch.Generator().manual_seed(0)).to(g) * self._heard
        if self._norm(noise) == 0:
            return torch.ones_like(g)
        return noise / self._norm(noise) + (g / self._norm(g) if self._norm(g) else 0.0)

    def _norm(self, v: Tensor) -> float:
        square = torch.dot(v, v)
        return float(self._total(square) if self._total else square) ** 0.5

    def _gradient_at(self, v: Tensor, step: float) -> Tensor:
        try:
            parts = zip(self._origin, self.layout.split(v), strict=True)
            self.layout.put([origin.add(part, alpha=step) for origin, part in parts])
            return self._evaluate()[2]
        except NonFinite as error:
            raise NonFiniteProduct("the loss is not finite nearby; this estimate is dropped") from error
        finally:
            self.layout.put(self._origin)

    def _evaluate(self) -> tuple[float, bool, Tensor]:
        """Loss, whether it depends on nothing, and gradient at the weights as they are."""
        # The inner context restores the random state, so that all gradients see the same dropout mask.
        with undisturbed(self._model, self._closure, self.layout.parameters), torch.enable_grad():
            loss = loss_of(self._closure)
            constant = loss.grad_fn is None
            gradients = [None] * len(self.layout.parameters) if constant else self._differentiate(loss)
            return float(loss.detach()), constant, self.layout.flatten(gradients)

    def _go_backward(self) -> None:
        """To parameters that `torch.autograd.grad` does not reach, as inside a reentrant checkpoint; if it does."""
        self._backward = True
        loss, constant, gradient = self._evaluate()
        self._backward = bool((gradient != self.gradient).any())
        if self._backward:
            self.loss, self.constant, self.gradient = loss, constant, gradient

    def _differentiate(self, loss: Tensor) -> Sequence[Tensor | None]:
        parameters = self.layout.parameters
        if self._backward:
            return by_backward(loss, self._model, parameters)
        try:
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        except RuntimeError as error:
            if "through the graph a second time" in str(error):
                raise CurvatureError(
                    "the graph of the closure's loss is used up: the closure must not call backward, and must compute "
                    "the loss anew, not return the one that training went backward from"
                ) from error
            if "heckpoint" not in str(error):
                raise CurvatureError(f"the loss cannot be differentiated: {error}") from error
            return by_backward(loss_of(self._closure), self._model, parameters)
        self._incomplete = any(gradient is None for gradient in found)
        return found


def by_backward(loss: Tensor, model: nn.Module, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients through `.grad`, which is put back: reentrant checkpoints and sharded parameters know no other way."""
    reached = list({id(p): p for p in [*model.parameters(), *parameters, *_leaves(loss)]}.values())
    saved = [p.grad for p in reached]
    for p in reached:
        p.grad = None
    try:
        loss.backward()
        return [p.grad for p in parameters]
    finally:
        for p, grad in zip(reached, saved, strict=True):
            p.grad = grad


def _leaves(loss: Tensor) -> list[Tensor]:
    """What a backward adds gradients to, as far as the graph names it; parameters of other modules among them."""
    nodes: list[Any] = [loss.grad_fn] if loss.grad_fn is not None else []
    seen, found = set(nodes), []
    while nodes:
        node = nodes.pop()
        if node.name() == "torch::autograd::AccumulateGrad":
            found.append(node.variable)
        inner = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= inner
        nodes += inner
    return found
