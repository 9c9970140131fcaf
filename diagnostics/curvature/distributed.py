"""The Hessian of the global batch, when several processes train together.

Every process calls `measure` at the same step. Before a result is shared each tells whether it has one, in the same
all-reduce, so that an error on one process becomes the same error on all and none waits for ever. Only an error in the
middle of a sharded forward, which communicates by itself, cannot be caught like this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.differences import Differences, by_backward
from diagnostics.curvature.errors import CurvatureError, NonFinite, Unreached
from diagnostics.curvature.layout import Closure, Layout, is_sharded, loss_of
from diagnostics.curvature.operators import DoubleBackward, Hessian


@dataclass(frozen=True)
class Ranks:
    """The processes that hold the same weights (`sharded`: a piece of them each)."""

    group: Any
    size: int
    rank: int
    sharded: bool

    def total(self, x: Tensor) -> Tensor:
        """Sum of inner products over shards; replicas each have the whole already."""
        if self.sharded:
            dist.all_reduce(x, group=self.group)
        return x

    def mean(self, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
        """Mean of a vector over processes, or the same error on all of them. One all-reduce."""
        error: Exception | None = None
        try:
            value = compute()
        except Exception as caught:
            value, error = torch.zeros_like(like), caught
        kinds = [error is not None, isinstance(error, CurvatureError), isinstance(error, NonFinite)]
        message = torch.cat([value, value.new_tensor(kinds)])
        dist.all_reduce(message, group=self.group)
        failed, known, dropped = map(int, message[-3:])
        if failed:
            kind = NonFinite if dropped else CurvatureError if known else RuntimeError
            raise kind(f"{failed} of {self.size} processes failed here: {error or 'another one'}") from error
        return message[:-3].div_(self.size)

    def agree(self, compute: Callable[[], Any], device: torch.device) -> Any:
        """What `compute` returns here, if it succeeded everywhere."""
        result: list[Any] = []

        def run() -> Tensor:
            result.append(compute())
            return torch.zeros(0, device=device)

        self.mean(run, torch.zeros(0, device=device))
        return result[0]


def ranks_of(model: nn.Module, layout: Layout) -> Ranks | None:
    """`None` for a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    shards = [p for p in layout.parameters if is_sharded(p)]
    if shards:
        return _sharded(shards, len(layout.parameters))
    wrapped = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    if not wrapped:
        return None
    group = wrapped[0].process_group
    return Ranks(group, dist.get_world_size(group), dist.get_rank(group), sharded=False)


def _sharded(shards: list[Any], parameters: int) -> Ranks:
    if len(shards) != parameters:
        raise CurvatureError("some parameters are sharded and others not; apply fully_shard to the whole model")
    mesh, placements = shards[0].device_mesh, shards[0].placements
    dimension = next(i for i, placement in enumerate(placements) if placement.is_shard())
    group = mesh.get_group(dimension)
    return Ranks(group, dist.get_world_size(group), dist.get_rank(group), sharded=True)


def hessian_of(closure: Closure, model: nn.Module, layout: Layout, ranks: Ranks | None, differences: bool) -> Hessian:
    """The Hessian of the closure's batch; of all processes' batches together where there are several."""

    def build() -> Hessian:
        if differences:
            return Differences(closure, layout, model, ranks.total if ranks else None)
        hessian = DoubleBackward(closure, layout)
        if hessian.unreached:
            _refuse(closure, model, hessian)
        return hessian

    return Averaged(build, ranks, layout) if ranks else build()


def _refuse(closure: Closure, model: nn.Module, hessian: DoubleBackward) -> None:
    """Raises if a backward reaches parameters that have no gradient here, or where none has one though the training
    gave them some. Else they have none."""
    if hessian.custom() and _hidden(closure, model, hessian.unreached):
        raise Unreached("a backward reaches parameters that torch.autograd.grad does not, as in a reentrant checkpoint")
    if hessian.constant and any(p.grad is not None and bool((p.grad != 0).any()) for p in hessian.unreached):
        raise CurvatureError(
            "the closure's loss does not depend on the optimizer's parameters, which got gradients: are they copies of "
            "the model's, as float32 master weights? No curvature is known then"
        )


def _hidden(closure: Closure, model: nn.Module, parameters: list[Tensor]) -> bool:
    """Whether a backward inside of a function's backward reaches some. Both evaluations draw the same numbers: a layer
    that was dropped has no gradient either."""
    with undisturbed(model, closure, parameters), torch.enable_grad():
        found = torch.autograd.grad(loss_of(closure), parameters, allow_unused=True)
    with undisturbed(model, closure, parameters), torch.enable_grad():
        through = by_backward(loss_of(closure), model, parameters)
    return any(a is None and b is not None for a, b in zip(found, through, strict=True))


class Averaged:
    """A rank's own Hessian made the global batch's: mean of gradients and products over ranks.

    Under FSDP2 the gradients that the differences are made of are already averaged; only errors are shared then.
    """

    def __init__(self, build: Callable[[], Hessian], ranks: Ranks, layout: Layout):
        self._ranks = ranks
        self._own = ranks.agree(build, layout.device)
        self.method, self.low_precision = self._own.method, self._own.low_precision
        self.constant, self.loss, self.error = self._own.constant, self._own.loss, self._own.error
        self.gradient = self._own.gradient
        if not ranks.sharded:
            self.gradient = ranks.mean(lambda: self._own.gradient, self.gradient)

    def __call__(self, v: Tensor) -> Tensor:
        if self._ranks.sharded:
            return self._ranks.agree(lambda: self._own(v), v.device)
        return self._ranks.mean(lambda: self._own(v), v)
