"""What one estimate was asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.curvature.distributed import Ranks
from diagnostics.curvature.estimate import Estimate
from diagnostics.curvature.layout import Closure, Layout
from diagnostics.curvature.solve import Target


@dataclass(frozen=True)
class Request:
    """The arguments of `measure`, with vectors in flat coordinates."""

    closure: Closure
    model: nn.Module
    optimizer: Optimizer
    rates: Sequence[float]
    times: float
    layout: Layout
    ranks: Ranks | None
    target: Target
    previous: Estimate | None
    displacement: Tensor | None
    cold: bool
    full: bool | Callable[[float], bool | None]
    memory_bytes: int | None
    until: float  # by time.perf_counter
    loss: float  # of the closure, from the same random state; NaN if not evaluated
