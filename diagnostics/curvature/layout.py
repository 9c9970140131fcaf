"""Parameters as one flat vector, and the loss a closure returns, checked."""

import sys
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from diagnostics.curvature.errors import CurvatureError, NonFinite

Closure = Callable[[], Tensor]
Matvec = Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]
Total = Callable[[Tensor], Tensor]  # sums inner products over shards


class Layout:
    """Parameters concatenated in order: complex ones as real and imaginary parts, sharded ones by their local shard.

    float64 if any parameter is, else float32: a Krylov basis in half precision is not orthogonal.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self.parameters = tuple(parameters)
        if not self.parameters:
            raise CurvatureError("no trainable parameters: the optimizer holds none with requires_grad=True")
        reals = [_real(p.detach()) for p in self.parameters]
        self.shapes = [real.shape for real in reals]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.dimension = sum(self.sizes)
        if not self.dimension:
            raise CurvatureError("no trainable parameters: all that the optimizer holds are empty tensors")
        self.dtype = torch.float64 if any(real.dtype == torch.float64 for real in reals) else torch.float32
        self.device = reals[0].device
        self._aligned = all(real.dtype == self.dtype and real.device == self.device for real in reals)

    def flatten(self, tensors: Sequence[Tensor | None]) -> Float[Tensor, " n"]:
        """One tensor a parameter, `None` for zero; detached."""
        with torch.no_grad():
            return self.joined(tensors)

    def joined(self, tensors: Sequence[Tensor | None]) -> Float[Tensor, " n"]:
        """The same with their graph."""
        return torch.cat([self._part(t, size) for t, size in zip(tensors, self.sizes, strict=True)])

    def split(self, flat: Float[Tensor, " n"]) -> list[Tensor]:
        """Views of a flat vector in the parameters' shapes (copies where type or device differ)."""
        parts = [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]
        if not self._aligned:
            parts = [
                part.to(local(p).device, p.dtype.to_real()) for p, part in zip(self.parameters, parts, strict=True)
            ]
        return [
            torch.complex(part[..., 0], part[..., 1]) if p.is_complex() else part
            for p, part in zip(self.parameters, parts, strict=True)
        ]

    def put(self, values: Sequence[Tensor]) -> None:
        """Other values in place of the weights. Graphs of the training stay valid once the old ones are put back
        bitwise: the version of each weight is not counted up."""
        for p, value in zip(self.parameters, values, strict=True):
            with torch.no_grad(), _unsafe_preserve_version_counter(p):
                local(p).copy_(value)

    def empty(self) -> Float[Tensor, " n"]:
        return torch.empty(self.dimension, dtype=self.dtype, device=self.device)

    def _part(self, tensor: Tensor | None, size: int) -> Tensor:
        if tensor is None:
            return torch.zeros(size, dtype=self.dtype, device=self.device)
        part = _real(tensor).reshape(-1)
        return part if self._aligned else part.to(self.device, self.dtype)


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; where that module was never imported (it takes half a second), none exists."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's shard; the tensor itself if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _real(tensor: Tensor) -> Tensor:
    """Dense, local and real."""
    shard = local(tensor)
    dense = shard if shard.layout == torch.strided else shard.to_dense()
    # Not a view: its derivative would need to begin at an even place of the vector that comes back.
    return torch.stack((dense.real, dense.imag), -1) if dense.is_complex() else dense


def loss_of(closure: Closure) -> Tensor:
    """The closure's loss: a finite scalar tensor, or a CurvatureError that says what it is instead."""
    try:
        loss = closure()
    except Exception as error:
        raise CurvatureError(f"the closure raised {type(error).__name__}: {error}") from error
    if not isinstance(loss, Tensor):
        kind = type(loss).__name__
        raise CurvatureError(f"the closure returned {kind}; return the loss tensor, without calling item or backward")
    if loss.numel() != 1:
        raise CurvatureError(f"the closure returned shape {tuple(loss.shape)}; return a scalar, the mean or the sum")
    if not torch.isfinite(loss).all():  # host sync
        raise NonFinite(f"the closure's loss is {loss.item()}; this estimate is dropped")
    return loss.reshape(())
