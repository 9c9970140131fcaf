"""Dead and saturated fractions of each activation, over a window of measured updates.

A unit is called dead only if it was inactive on every input of the last updates that together hold at least 300
inputs: then it fires on fewer than 1 % of them (95 % confidence, rule of three).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats

WINDOW = 300  # inputs a unit

COLUMNS = ("mean", "std", "zero_fraction", "derivative", "input_mean", "input_std", "entropy")


@dataclass(frozen=True)
class Call:
    """One activation call: its name in the run, the function, and what it did to its units."""

    name: str
    kind: stats.Kind
    counts: stats.UnitCounts
    hidden: bool = False

    @property
    def activation(self) -> str:
        return self.kind.name


GATE = replace(stats.KINDS["sigmoid"], name="gate", saturates=False)  # a gate may be shut and be right


@dataclass(frozen=True)
class _Seen:
    inputs: int
    active: Tensor
    flat: Tensor


class Units:
    """The windows, one an activation call."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[_Seen]] = {}

    @staticmethod
    def merged(forwards: Sequence[Sequence[Call]]) -> list[Call]:
        """The calls of several forwards of one update (micro-batches), added up by name."""
        total: dict[str, Call] = {}
        for call in (call for calls in forwards for call in calls):
            known = total.get(call.name)
            fits = known is not None and known.counts.active.shape == call.counts.active.shape
            total[call.name] = replace(call, counts=stats.add(known.counts, call.counts)) if known and fits else call
        return list(total.values())

    def rows(self, calls: Sequence[Call]) -> tuple[list[str], dict[str, Any]]:
        """Names and columns of table `units` for one measured update; the fractions stay on the device."""
        if not calls:
            return [], {}
        fractions = torch.stack([self._fractions(call) for call in calls])
        moments = torch.stack([stats.unit_moments(call.counts.moments) for call in calls])
        columns: dict[str, Any] = {
            "activation": [call.activation for call in calls],
            "units": [call.counts.units for call in calls],
            "hidden": [float(call.hidden) for call in calls],
            "dead_fraction": fractions[:, 0],
            "saturated_fraction": fractions[:, 1],
            "max_input": torch.stack([call.counts.largest for call in calls]),
        }
        columns |= {name: moments[:, i] for i, name in enumerate(COLUMNS)}
        return [call.name for call in calls], columns

    def _fractions(self, call: Call) -> Tensor:
        window = self._windows.setdefault(call.name, deque())
        counts = call.counts
        if window and window[-1].active.shape != counts.active.shape:
            window.clear()  # another number of units: not the same layer any more
        window.append(_Seen(counts.inputs, counts.active, counts.flat))
        while sum(seen.inputs for seen in window) - window[0].inputs >= WINDOW:
            window.popleft()
        active = torch.stack([seen.active for seen in window]).sum(0)
        flat = torch.stack([seen.flat for seen in window]).sum(0)
        return stats.unit_fractions(call.kind, sum(seen.inputs for seen in window), active, flat, WINDOW)
