"""What an update of several backward passes is made of: the mean of what they left, or their sum.

Curvature is that of the closure's loss, and the stability ratio that of an update along its gradient. Where a loop
leaves out the division by the number of passes, the update is that many times as long, and so is the ratio. One
parameter tells. With c the closure's gradient at the weights before the update, what the last pass added to its own is
a c, if the closure computes the loss of the last batch; if it computes that of all of them, the whole is b c. Either is
then a multiple of c up to rounding, and passes times a, or b, is 1 or the number of passes. Elsewhere (masks drawn
anew, batches of unequal weight, clipping in between) nothing is concluded and the mean is taken for granted.

Where the last pass found nothing left of the others, as in a GAN or an attack that makes inputs, a c is the whole
gradient, and right; but not where the loss that the loop gives is that of as many batches as there were passes: passes
times a times the closure's; nor where each of many passes was of other examples of the data at the same weights, and
the optimizer was given nothing but the last one's gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diagnostics.monitor.distributed import is_dtensor

MOST = 1 << 16  # entries of the parameter that are compared
AGREE = 1e-3  # of a gradient: float32 rounding, a thousand passes long
TRIES, AGREEING = 4, 3  # measured updates, of which the first may not show what the model is given
NEARLY = 0.25  # the same: losses of the batches of one update differ
MANY = 8  # passes: fewer may be of tasks, domains or a critic, whose gradients are only looked at


@dataclass(frozen=True)
class Parts:
    """The gradient of one parameter after the last of several passes, and what that one added; their first entries.
    `moved`: it was written to between them. `given`: the optimizer got this, clipped or not, and not what the loop put
    together from several."""

    parameter: Tensor
    passes: int
    added: Tensor
    total: Tensor
    moved: bool
    given: bool = False

    def at_step(self, scale: Tensor | None) -> "Parts":
        """Without what a gradient scaler multiplied the loss by; when the optimizer reads the gradient."""
        now = first_entries(self.parameter.grad)
        given = now is not None and now.shape == self.total.shape and not math.isnan(_multiple(now, self.total))
        scale = (torch.ones(()) if scale is None else scale).to(self.total)
        return replace(self, added=self.added / scale, total=self.total / scale, given=given)


class Accumulated:
    """`times`: the optimizer's gradient is so many times that of the closure's loss. `batches`: it averages so many
    as large as the closure's."""

    def __init__(self, note: Callable[..., None]) -> None:
        """`note`: what is found is written with the run."""
        self.times, self.batches = 1.0, 1
        self._write, self._tries, self._alone = note, TRIES, 0

    @property
    def asking(self) -> bool:
        return self._tries > 0

    @property
    def note(self) -> str:
        return (
            f"the gradients of {self.times:g} backward passes are added up, not averaged: the stability ratio is that "
            "of their sum"
        )

    def look(
        self, parts: Parts, gradient: Callable[[Tensor], Tensor | None], loss: Any, closures: Any, batches: int
    ) -> None:
        """`gradient(parameter)`: the closure's, at the weights before the update. `loss`: as the loop gives it, and the
        closure's own. `batches`: that the model was given for this update, if all are of the data."""
        self._tries -= 1
        own = first_entries(gradient(parts.parameter))
        if own is None:  # the closure does not use the parameter
            return
        if torch.equal(parts.added, parts.total):  # zeroed in between
            told, one = float(loss), _multiple(parts.total.to(own), own) * float(closures)
            summed = abs(told - parts.passes * one) <= NEARLY * abs(told) and one != 0
            self._alone += summed or (batches == parts.passes >= MANY and parts.given and not parts.moved)
            if self._alone == AGREEING:
                self._write(accumulated={"passes": parts.passes, "alone": True, "summed": bool(summed)})
            return
        for part, count in ((parts.added, parts.passes), (parts.total, 1)):
            times = _multiple(part.to(own), own) * count
            for whole in (1, parts.passes):
                if abs(times - whole) <= AGREE * whole:
                    self.times, self.batches, self._tries = float(whole), count, 0
                    self._write(accumulated={"passes": parts.passes, "times": self.times, "batches": count})
                    return


def first_entries(gradient: Any) -> Tensor | None:
    """A copy, in float32 at least; `None` of what is not dense and here."""
    if not isinstance(gradient, Tensor) or gradient.layout != torch.strided or is_dtensor(gradient):
        return None
    entries = gradient.detach().flatten()[:MOST]
    entries = torch.view_as_real(entries).flatten() if entries.is_complex() else entries
    return entries.to(torch.promote_types(entries.dtype, torch.float32), copy=True)


def _multiple(part: Tensor, whole: Tensor) -> float:
    """m where part = m whole, NaN where it is no multiple."""
    square = torch.dot(whole, whole)
    multiple = torch.dot(part, whole) / square
    rest = torch.linalg.vector_norm(part - multiple * whole)
    fits = (square > 0) & (rest <= AGREE * torch.linalg.vector_norm(part))
    return float(torch.where(fits, multiple, torch.nan))
