"""What is followed between curvature estimates: independent batches, the weights along the top eigenvector, and how
far the weights went.

Holds the estimate (its vectors) and one copy of the weights, and nothing that grows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import stats
from diagnostics.curvature import Estimate, Quotients, combine, follow
from diagnostics.monitor.distributed import is_sharded
from diagnostics.monitor.schedule import BATCHES, PROJECTED

ENTRIES = 1 << 28  # numbers kept of the batches that follow an estimate (1 GiB in float32)


@dataclass
class Tracking:
    """State between estimates. `origin`: the weights that displacements and projections are measured from."""

    estimate: Estimate | None = None
    step: int = 0
    origin: list[Tensor] | None = None
    origin_step: int = 0
    quotients: list[Quotients] = field(default_factory=list)

    def begin(self, step: int, estimate: Estimate, parameters: Sequence[Tensor]) -> None:
        self.estimate, self.step, self.quotients = estimate, step, []
        self.mark(step, parameters)

    def mark(self, step: int, parameters: Sequence[Tensor]) -> None:
        """Measure displacements from here on; of sharded weights each process has a part, and none is measured."""
        self.origin, self.origin_step = None, step
        if not any(map(is_sharded, parameters)):
            self.origin = [p.detach().clone() for p in parameters]

    def displacement(self, parameters: Sequence[Tensor]) -> list[Tensor] | None:
        if self.origin is None or len(self.origin) != len(parameters):
            return None
        return list(stats.foreach._foreach_sub([p.detach() for p in parameters], self.origin))

    def projecting(self, step: int) -> bool:
        return self.estimate is not None and self.origin_step == self.step < step <= self.step + PROJECTED

    def projection(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """Weights since the estimate along its top eigenvector, in the optimizer's coordinates P^1/2 theta."""
        moved = self.displacement(parameters)
        estimate = self.estimate
        if moved is None or estimate is None or estimate.scaling is None or estimate.preconditioned_vector is None:
            return None
        vector = estimate.preconditioned_vector
        flat = torch.cat([m.reshape(-1) for m in moved]).to(vector)
        return torch.dot(estimate.scaling.into(flat), vector)

    def following(self) -> bool:
        """Whether the estimate has vectors (a quick one has not) and batches are still to come."""
        return self._wanted() > len(self.quotients)

    def _wanted(self) -> int:
        """Batches that follow; each is two vectors of memory until they are combined, so fewer of a large model."""
        if self.estimate is None or self.estimate.vectors is None:
            return 0
        return max(2, min(BATCHES, ENTRIES // max(1, 2 * self.estimate.dimension)))

    def follow(self, closure: Callable[[], Any], model: nn.Module) -> dict[str, Any] | None:
        """Try the estimate's vectors on the closure's batch; the row for table `batches` once there are enough."""
        assert self.estimate is not None
        self.quotients.append(follow(closure, model, self.estimate))
        return self.combined() if len(self.quotients) == self._wanted() else None

    def combined(self) -> dict[str, Any] | None:
        """The row of what has been seen so far; at least two batches are needed for an error."""
        if self.estimate is None or len(self.quotients) < 2:
            return None
        return {"origin": self.step, **combine(self.quotients, self.estimate)}
