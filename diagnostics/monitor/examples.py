"""A few examples of a batch as the loss got them: what the model was given, what it answered, and the target, which is
read off the gradient of its answer (`stats.targets`).

Only where `watch` was asked for them, since they are the user's data: of the first batch whose targets are known, and
of one whenever the run has become twice as long.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats

CLASSES, NUMBERS = "classes", "numbers"
IGNORED = -1  # the class of a place that is compared with nothing
NONE = (
    "no examples were kept: what the model answers could not be compared with targets, as where it computes its own "
    "loss, is compiled, or is called more than once an update"
)


class Examples:
    """Keeps small copies, and those only until they are written."""

    def __init__(self, most: int = 0, guarded: Callable[..., Any] | None = None) -> None:
        """`most`: examples of one batch. `guarded` runs what must not stop other measurements if it fails."""
        self._most, self._next = most, 1
        self._guarded = guarded or (lambda name, function, *args: function(*args))
        self.due = False
        self._given: list[Tensor] = []
        self._places = 1  # rows of the output that belong to one example
        self._rows: list[dict[str, Any]] = []

    def ask(self, step: int) -> None:
        """Before the update `step`."""
        self.due = self._most > 0 and step >= self._next
        self._given, self._places, self._rows = [], 1, []

    @property
    def none_yet(self) -> bool:
        """Whether none came of those that were asked for."""
        return self._most > 0 and self._next == 1

    def passed(self, x: Tensor | None, outputs: int) -> None:
        """A forward ended that was given `x`, and answered with as many `outputs`."""
        self._given, self._places = [], 1
        by_example = None if x is None or x.dim() == 0 else _by_example(x, outputs)
        if by_example is not None:
            self._given = self._guarded("examples", lambda: list(map(stats.thumbnail, by_example[: self._most]))) or []
            self._places = outputs // len(by_example)

    def first(self, output: Tensor) -> Tensor:
        """Its rows that are kept."""
        return output.detach()[: self._most * self._places].clone()

    def compared(self, output: Tensor, targets: stats.Targets | None) -> None:
        """Rows of an output as `first` gave them, and the targets of all, if they are known."""
        self._rows = self._guarded("examples", self._compared, output, targets) or []

    def _compared(self, output: Tensor, targets: stats.Targets | None) -> list[dict[str, Any]]:
        n = len(output) // self._places
        sides = _told(output.cpu(), targets)
        rows = [_row(at, "input", NUMBERS, each.cpu()) for at, each in enumerate(self._given[:n])]
        for role, kind, values, shares in sides:
            values, shares = (x.reshape(n, -1, *x.shape[1:]) if self._places > 1 else x for x in (values, shares))
            for at in range(n):
                small, one = stats.thumbnail(values[at]), shares[at].numel() == 1
                rows.append(_row(at, role, kind, small, float(shares[at]) if one else math.nan))
        return rows

    def take(self, step: int) -> list[dict[str, Any]]:
        """The rows of table `examples`."""
        rows, self._rows = self._rows, []
        if rows:
            self._next = 2 * step
        return rows


def _by_example(x: Tensor, outputs: int) -> Tensor | None:
    """With one example after the other: a batch may lie along the second dimension, or an output have a row for each
    place of an example."""
    if len(x) != outputs and x.dim() > 1 and x.shape[1] == outputs:
        return x.movedim(1, 0)
    return x if len(x) and outputs % len(x) == 0 else None


def _told(output: Tensor, targets: stats.Targets | None) -> list[tuple[str, str, Tensor, Tensor]]:
    """Role, kind, values and how sure each is, of targets and of answers in their unit."""
    if targets is None or targets.values is None:
        return [("answer", NUMBERS, output, torch.full_like(output, torch.nan, dtype=torch.float32))]
    form, z = targets.form, output.float()
    if form.classes is None:
        unsure = torch.full_like(z, torch.nan)
        values = targets.values.flatten()[: z.numel()].cpu().reshape(z.shape)
        return [("target", NUMBERS, values, unsure), ("answer", NUMBERS, form.targets(z, 0 * z), unsure)]
    scores = z.movedim(form.classes, -1)
    values = targets.values[: scores.numel() // scores.shape[-1]].cpu().reshape(scores.shape)
    shares, classes = values.nan_to_num(-math.inf).max(-1)
    answered = scores.softmax(-1).max(-1)
    shares = torch.full_like(shares, torch.nan) if form.weighted else shares
    return [
        ("target", CLASSES, classes.where(values.isfinite().all(-1), IGNORED), shares),
        ("answer", CLASSES, answered.indices, answered.values),
    ]


def _row(at: int, role: str, kind: str, small: Tensor, certainty: float = math.nan) -> dict[str, Any]:
    numbers = small.flatten().tolist()
    return {
        "example": at, "role": role, "kind": kind, "size": list(small.shape), "values": numbers, "certainty": certainty,
    }  # fmt: skip
