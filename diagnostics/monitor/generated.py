"""What another network makes and the watched one is to tell from data, as a discriminator: can it come where these are?

A network that learns from the watched one's answers passes its results in with their graph, whose last function tells
what they can be; data have none, and neither has what the other made before it was detached.
"""

from typing import Any

import torch
from torch import Tensor

from diagnostics.monitor import losspath
from diagnostics.monitor.answers import BOUNDS
from diagnostics.monitor.arguments import tensors_in

# Of the range of results: what lies in it and has noise added, or is interpolated, is hardly outside.
WELL_OUTSIDE = 0.1


class Generated:
    """Of the forwards of one measured update. Until a bounded result was passed in, which few models ever see, nothing
    is looked at."""

    def __init__(self) -> None:
        self.function = ""  # that the results come from
        self._shape: torch.Size | None = None
        self._data: list[Tensor] = []  # per example, its largest and smallest number

    def passed(self, inputs: Any) -> None:
        x = next(tensors_in(inputs), None)
        if x is None or x.dim() < 2 or not x.is_floating_point() or not x.numel():
            return
        if x.grad_fn is None:
            if x.shape[1:] == self._shape:
                rows = x.detach().reshape(len(x), -1)
                self._data.append(torch.stack([rows.amax(1), rows.amin(1)]).float())
        elif (function := losspath.last_function(x)) in BOUNDS:
            self.function, self._shape = function, x.shape[1:]

    def forget(self) -> None:
        self._data = []

    def columns(self) -> dict[str, Tensor]:
        """Of `scalars`: the share of examples that lie where no result can; those that were detached count as well."""
        data = self._data
        self.forget()
        if not data:
            return {}
        low, high = BOUNDS[self.function]
        margin = WELL_OUTSIDE * (high - low)
        most, least = torch.cat(data, 1)
        return {"ungenerated_share": ((most > high + margin) | (least < low - margin)).float().mean()}
