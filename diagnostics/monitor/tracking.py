"""What is followed between curvature estimates: independent batches, the weights along the top eigenvector, and how
far the weights went.

Holds the estimate (its `eigenvalues` + 2 vectors, and an adaptive optimizer's P) and one copy of the weights, on the
host where a device has little memory left; 16 MiB of batches; and nothing that grows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import stats
from diagnostics.curvature import Estimate, Quotients, combine, follow
from diagnostics.curvature.runs import free_memory
from diagnostics.monitor.distributed import is_sharded
from diagnostics.monitor.schedule import BATCHES, PROJECTED

ROOM = 0.1  # of a device's free memory: vectors that take more than that wait on the host


@dataclass
class Tracking:
    """State between estimates. `origin`: the weights that displacements and projections are measured from."""

    estimate: Estimate | None = None
    step: int = 0
    place: torch.device | None = None  # where vectors and origin wait
    origin: list[Tensor] | None = None
    followed: tuple[int, ...] = ()  # identities of the weights that the origin is of
    origin_step: int = 0
    quotients: list[Quotients] = field(default_factory=list)

    def begin(self, step: int, estimate: Estimate, parameters: Sequence[Tensor]) -> None:
        estimate = estimate.lasting()
        device = parameters[0].device
        self.place = resting_place(device, estimate.bytes, free_memory(device))
        self.estimate, self.step, self.quotients = estimate.to(self.place), step, []
        self.mark(step, parameters)

    def mark(self, step: int, parameters: Sequence[Tensor]) -> None:
        """Measure displacements from here on; of sharded weights each process has a part, and none is measured."""
        self.origin, self.origin_step, self.followed = None, step, tuple(map(id, parameters))
        if not any(map(is_sharded, parameters)):
            self.origin = [p.detach().to(self.place or p.device, copy=True) for p in parameters]

    def displacement(self, parameters: Sequence[Tensor]) -> list[Tensor] | None:
        if self.origin is None or self.followed != tuple(map(id, parameters)):
            return None
        if any(o.shape != p.shape or o.dtype != p.dtype for o, p in zip(self.origin, parameters, strict=True)):
            return None  # the model has grown, or has another type
        origin = [o.to(p.device) for o, p in zip(self.origin, parameters, strict=True)]
        return list(stats.foreach._foreach_sub([p.detach() for p in parameters], origin))

    def projecting(self, step: int) -> bool:
        return self.estimate is not None and self.origin_step == self.step < step <= self.step + PROJECTED

    def projection(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """Weights since the estimate along its top eigenvector, in the optimizer's coordinates P^1/2 theta."""
        moved = self.displacement(parameters)
        estimate = self.estimate
        if moved is None or estimate is None or estimate.scaling is None or estimate.preconditioned_vector is None:
            return None
        flat = torch.cat([stats.flat(m) for m in moved]).to(estimate.preconditioned_vector.dtype)
        along = estimate.scaling.to(flat.device).into(flat)
        return torch.dot(along, estimate.preconditioned_vector.to(flat.device))

    def following(self) -> bool:
        """Whether the estimate has vectors (a quick one has not) and batches are still to come."""
        estimate = self.estimate
        if estimate is None or estimate.vectors is None or len(self.quotients) >= BATCHES:
            return False
        return all(parameter.requires_grad for parameter in estimate.parameters)

    def follow(self, closure: Callable[[], Any], model: nn.Module, averaged: int) -> dict[str, Any] | None:
        """Try the estimate's vectors on the closure's batch; the row for table `batches` once there are enough.
        `averaged`: an update's gradient is the mean over so many such batches."""
        assert self.estimate is not None
        self.quotients.append(follow(closure, model, self.estimate))
        return self.combined(averaged) if len(self.quotients) == BATCHES else None

    def combined(self, averaged: int) -> dict[str, Any] | None:
        """The row of what has been seen so far; at least two batches are needed for an error."""
        if self.estimate is None or len(self.quotients) < 2:
            return None
        return {"origin": self.step, **combine(self.quotients, self.estimate, averaged)}


def resting_place(device: torch.device, needed_bytes: int, free_bytes: int) -> torch.device:
    """Where vectors wait for their next use: the host, if they would take more than `ROOM` of the device."""
    return device if device.type == "cpu" or needed_bytes <= ROOM * free_bytes else torch.device("cpu")
