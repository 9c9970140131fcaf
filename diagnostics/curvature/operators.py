"""From a loss and parameters to a function v -> Hv on flat vectors.

The graph of the gradient is built once and kept, so each product costs one backward through it, and every product sees
the same dropout mask and the same batch statistics. Algorithms elsewhere see only the function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diagnostics.curvature.context import CurvatureError, scalar, undisturbed
from diagnostics.curvature.rewrites import Rewrites

Closure = Callable[[], Tensor]
Matvec = Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]


class Layout:
    """Parameters as one flat vector: concatenated in order, complex ones as their real and imaginary parts.

    float64 if any parameter is, else float32: a Krylov basis in half precision is not orthogonal.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self.parameters = tuple(parameters)
        if not self.parameters:
            raise CurvatureError("no trainable parameters: the optimizer holds none with requires_grad=True")
        self.shapes = [_real(p).shape for p in self.parameters]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.dimension = sum(self.sizes)
        self.dtype = torch.float64 if any(_real(p).dtype == torch.float64 for p in self.parameters) else torch.float32
        self.device = self.parameters[0].device

    def flatten(self, tensors: Sequence[Tensor | None]) -> Float[Tensor, " n"]:
        """One tensor a parameter, `None` for zero."""
        return torch.cat([self._part(t, size) for t, size in zip(tensors, self.sizes, strict=True)])

    def split(self, flat: Float[Tensor, " n"]) -> list[Tensor]:
        """Views of a flat vector in the parameters' shapes, types and devices."""
        return [
            (torch.view_as_complex(part.view(shape)) if p.is_complex() else part.view(shape)).to(p.device, p.dtype)
            for p, part, shape in zip(self.parameters, flat.split(self.sizes), self.shapes, strict=True)
        ]

    def _part(self, tensor: Tensor | None, size: int) -> Tensor:
        if tensor is None:
            return torch.zeros(size, dtype=self.dtype, device=self.device)
        dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
        return _real(dense).reshape(-1).to(self.device, self.dtype)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


@runtime_checkable
class HessianOperator(Protocol):
    """What the estimates need of a Hessian: its gradient, its products, and a name for how they are made."""

    gradient: Tensor
    loss: float
    method: str

    def __call__(self, v: Tensor) -> Tensor: ...


class DoubleBackward:
    """Products by a second backward through the retained graph of the gradient.

    Memory: the graph, three to five times the activations of a training step, for as long as the object lives.
    """

    method = "double backward"

    def __init__(self, closure: Closure, layout: Layout):
        self.layout = layout
        with Rewrites() as rewrites, torch.enable_grad():
            loss = scalar(closure())
        self.loss, self.low_precision = float(loss.detach()), rewrites.autocast  # host sync
        gradients = _gradients(loss, layout.parameters)
        self.gradient = layout.flatten(gradients)
        # A gradient without a graph does not depend on the parameters: its rows of the Hessian are zero.
        self._rows = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        self._gradients = [gradients[i] for i in self._rows]
        self.constant = loss.grad_fn is None

    def __call__(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        if not self._rows:
            return torch.zeros_like(v)
        parts = self.layout.split(v)
        products = torch.autograd.grad(
            self._gradients,
            self.layout.parameters,
            [parts[i] for i in self._rows],
            retain_graph=True,
            allow_unused=True,
        )
        return self.layout.flatten(products)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients with a graph; densified there (products of sparse ones stay exact), `None` where there is none."""
    if loss.grad_fn is None:
        return [None] * len(parameters)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    return [g.to_dense() if g is not None and g.layout != torch.strided else g for g in gradients]


class Differences:
    """Products by central differences of gradients, where a second backward is impossible or wrong.

    Two gradients a product, each from the same random state. The step is relative to the weights' norm; the error is
    of the order of the step squared on smooth losses, but on ReLU nets a few per cent at any step, because kinks are
    curvature at a finite distance.
    """

    method = "differences"
    low_precision = False
    constant = False

    def __init__(self, closure: Closure, layout: Layout, model: nn.Module, step: float = 3e-3):
        self._closure, self.layout, self._model = closure, layout, model
        self._origin = [p.detach().clone() for p in layout.parameters]  # one vector of memory
        norm = float(layout.flatten(self._origin).norm())
        self._step = step * max(norm, 1.0) / max(1.0, layout.dimension**0.5) ** 0.5
        self.loss, self.gradient = self._evaluate()

    def __call__(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        step = self._step / float(v.norm().clamp_min(1e-30))
        ahead, behind = self._gradient_at(v, step), self._gradient_at(v, -step)
        return (ahead - behind) / (2 * step)

    def _gradient_at(self, v: Tensor, step: float) -> Tensor:
        parts = self.layout.split(v)
        try:
            with torch.no_grad():
                for p, origin, part in zip(self.layout.parameters, self._origin, parts, strict=True):
                    _set(p, origin + step * part)
            return self._evaluate()[1]
        finally:
            with torch.no_grad():
                for p, origin in zip(self.layout.parameters, self._origin, strict=True):
                    _set(p, origin)

    def _evaluate(self) -> tuple[float, Tensor]:
        with undisturbed(self._model), Rewrites(), torch.enable_grad():
            loss = scalar(self._closure())
            self.constant = loss.grad_fn is None
            gradients = [None] * len(self.layout.parameters)
            if not self.constant:
                gradients = torch.autograd.grad(loss, self.layout.parameters, allow_unused=True)
            return float(loss.detach()), self.layout.flatten(gradients)


def _set(parameter: Tensor, value: Tensor) -> None:
    """Overwrite a parameter in place; the value returns to what it was, so graphs of the training stay valid."""
    with torch.autograd._unsafe_preserve_version_counter(parameter):
        parameter.copy_(value)


@dataclass(frozen=True)
class Weighted:
    """The Hessian of the mean loss over several batches: each batch's mean weighs with its number of samples."""

    operators: Sequence[Matvec]
    samples: Sequence[int]

    def __call__(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        total = sum(self.samples)
        return sum(
            (operator(v).mul_(count / total) for operator, count in zip(self.operators, self.samples, strict=True)),
            start=torch.zeros_like(v),
        )
