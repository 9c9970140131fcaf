"""From a loss and parameters to a function v -> Hv on flat vectors.

The graph of the gradient is built once and kept, so each product costs one backward through it, and every product sees
the same dropout mask and the same batch statistics. Algorithms elsewhere see only the function.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diagnostics.curvature.hoisted import closure_runs
from diagnostics.curvature.layout import Closure, Layout, Matvec, loss_of
from diagnostics.curvature.rewrites import Rewrites


@runtime_checkable
class Hessian(Protocol):
    """What an estimate needs of a Hessian: products, the gradient they belong to, and how far to trust them."""

    method: str  # "double backward" or "differences"
    gradient: Tensor  # (n,)
    constant: bool  # the loss does not depend on the parameters
    low_precision: bool  # parts of the forward ran in half precision
    loss: float
    error: float  # relative error of a product, beyond rounding

    def __call__(self, v: Tensor) -> Tensor: ...


class DoubleBackward:
    """Products by a second backward through the retained graph of the gradient.

    Memory: that graph, three to five times the activations of a training step, for as long as the object lives.
    """

    method = "double backward"
    error = 0.0

    def __init__(self, closure: Closure, layout: Layout):
        self.layout = layout
        with torch.enable_grad(), closure_runs(), Rewrites() as rewrites:
            loss = loss_of(closure)
        if rewrites.recomputed:
            raise RuntimeError("of what a checkpoint computes once more, a function has none")
        halves = any(p.dtype in (torch.float16, torch.bfloat16) for p in layout.parameters)
        self.low_precision, self.stops = rewrites.autocast or halves, rewrites.stops
        self.constant, self.loss, self._graph = loss.grad_fn is None, float(loss.detach()), loss.grad_fn
        gradients = self._differentiate(loss)
        with torch.enable_grad():  # one tensor: autograd checks the shapes of each at every call
            self._joined = layout.joined(gradients)
        self.gradient = self._joined.detach()
        self.unreached = [p for p, g in zip(layout.parameters, gradients, strict=True) if g is None]
        self.constant |= len(self.unreached) == len(gradients)

    def __call__(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        if not self._joined.requires_grad:  # a gradient without a graph does not depend on the parameters
            return torch.zeros_like(v)
        products = torch.autograd.grad(self._joined, self.layout.parameters, v, retain_graph=True, allow_unused=True)
        return self.layout.flatten(products)

    def custom(self) -> set[type]:
        """The autograd functions on the way to the loss that are written in Python, but for this package's."""
        found, seen, waiting = set[type](), set(), [self._graph]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            written = getattr(node, "_forward_cls", None)
            if written is not None and not written.__module__.startswith("diagnostics."):
                found.add(written)
        return found

    def _differentiate(self, loss: Tensor) -> list[Tensor | None]:
        """Gradients with a graph, sparse ones made dense; `None` where there is none."""
        if self.constant:
            return [None] * len(self.layout.parameters)
        gradients = torch.autograd.grad(loss, self.layout.parameters, create_graph=True, allow_unused=True)
        return [g if g is None or g.layout == torch.strided else g.to_dense() for g in gradients]


@dataclass(frozen=True)
class Weighted:
    """The Hessian of the mean loss over several batches: each batch's mean counts with its number of samples."""

    hessians: Sequence[Matvec]
    samples: Sequence[int]

    def __call__(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        result, total = torch.zeros_like(v), sum(self.samples)
        for hessian, count in zip(self.hessians, self.samples, strict=True):
            result.add_(hessian(v), alpha=count / total)
        return result
