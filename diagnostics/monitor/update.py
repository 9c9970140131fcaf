"""What is known of one update of the optimizer, from its hooks to the record."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diagnostics.monitor.accumulated import Parts
from diagnostics.monitor.left import Left
from diagnostics.monitor.schedule import Plan


@dataclass
class Update:
    """One optimizer update. Filled by the hooks; tensors stay on the device."""

    plan: Plan
    learning_rates: list[Any] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)  # columns of `scalars`, tensors or floats
    layers: dict[str, Tensor] = field(default_factory=dict)  # columns of `layers`, one entry a parameter
    before: list[Tensor | None] | None = None  # weights before the update; None for frozen ones
    change: list[Tensor] | None = None  # what the update added to them
    slope: Tensor | None = None  # g'u of the update, g as the optimizer got it
    downhill: Tensor | None = None  # the same, g of the loss
    left: Left | None = None  # what shows whether the weights stayed as the update left them
    rescued: list[Tensor] | None = None  # weights before an update whose gradient is not finite
    bad_gradients: list[str] = field(default_factory=list)  # parameters whose gradient is not finite
    accumulated: Parts | None = None  # where several backward passes went into it
    finished: bool = False
    late: Tensor | None = None  # a gradient that was written to after the update, where nothing reads it
