"""The loss along two lines through the present weights, to be seen beside its second-order Taylor approximation.

The lines follow the top eigenvector and the gradient. A stretch shows the valley that the approximation promises - from
here across its floor to the other side, where a step of 2 / curvature would land - and where the update just made
began, so that one sees whether it crossed the floor and landed higher. Forward passes only; the weights, like all
else, come back bitwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.distributed import hessian_of, ranks_of
from diagnostics.curvature.estimate import Estimate
from diagnostics.curvature.layout import Closure, Layout
from diagnostics.curvature.remarks import REPEATS
from diagnostics.curvature.rewrites import Rewrites

POINTS = 9  # evenly spaced; 0 and the beginning of the update besides
MARGIN = 0.2  # of the stretch, beyond each of its ends
FARTHEST = 20.0  # times the update: a valley wider than that would hide it
RISE = 1e-2  # of the loss: what a stretch changes at least, for rounding to be invisible
ROUNDING = 1e-5  # of the weights' norm: a hundred times what moving them by rounding does


@dataclass(frozen=True)
class Line:
    """The loss at weights + t v has this slope g'v and curvature v'Hv at t = 0; `moved` is u'v of the update u."""

    direction: str
    vector: Tensor  # (n,) unit
    slope: float
    curvature: float
    moved: float  # NaN where the update is not known


def slices(
    closure: Closure, model: nn.Module, estimate: Estimate, change: Sequence[Tensor | None] | None = None
) -> list[dict[str, Any]]:
    """The rows for table `slices`, without `step`; none where they would show noise or several processes train.

    `change`: of `estimate.parameters` in the update just made. Costs a graph, two products and 21 forwards at most.
    """
    layout = Layout(estimate.parameters)
    estimate = estimate.to(layout.device)
    noisy = estimate.loss_spread > REPEATS or any(p.dtype.itemsize < 4 for p in layout.parameters)
    if estimate.vectors is None or noisy or ranks_of(model, layout):
        return []
    loss, lines = _lines(closure, model, layout, estimate, None if change is None else layout.flatten(change))
    origin = [p.detach().clone() for p in layout.parameters]
    size = float(layout.flatten(origin).norm())
    rows = []
    for line in lines:
        offsets = _offsets(line, loss, size)
        if len(offsets):
            losses = _losses(closure, model, layout, origin, line.vector, offsets)
            columns = {"slope": line.slope, "curvature": line.curvature, "moved": line.moved}
            rows.append({"direction": line.direction, "offsets": offsets, "losses": losses, **columns})
    same = all(_close(row["losses"][row["offsets"].index(0.0)], loss) for row in rows)
    return rows if same else []


def _lines(
    closure: Closure, model: nn.Module, layout: Layout, estimate: Estimate, change: Tensor | None
) -> tuple[float, list[Line]]:
    """The loss here, and the lines; the graph is freed before the forwards begin."""
    assert estimate.vectors is not None
    with undisturbed(model, closure, layout.parameters):
        hessian = hessian_of(closure, model, layout, None, estimate.method == "differences")
        gradient = hessian.gradient
        vectors = {"top eigenvector": estimate.vectors[0], "gradient": gradient / gradient.norm()}
        return hessian.loss, [
            Line(
                direction,
                v,
                slope=float(torch.dot(gradient, v)),
                curvature=float(torch.dot(v, hessian(v))),
                moved=math.nan if change is None else float(torch.dot(change, v)),
            )
            for direction, v in vectors.items()
            if bool(torch.isfinite(v).all())  # a gradient of exactly 0 has no direction
        ]


def _offsets(line: Line, loss: float, size: float) -> list[float]:
    """From where the update began, past 0, to the other side of the valley and a little beyond; ascending, with 0."""
    moved = 0.0 if math.isnan(line.moved) else line.moved
    ends = [0.0, -moved]
    if line.curvature > 0:
        far = -2 * line.slope / line.curvature
        ends.append(math.copysign(min(abs(far), FARTHEST * abs(moved) or math.inf), far))
    else:
        ends.append(moved)  # no other side: as far again as it came
    middle, half = (max(ends) + min(ends)) / 2, (max(ends) - min(ends)) * (0.5 + MARGIN)
    half = max(half, _least(line, loss), ROUNDING * size)
    if not math.isfinite(half):
        return []
    even = np.linspace(middle - half, middle + half, POINTS)
    return sorted({0.0, -moved, *even.tolist()})


def _least(line: Line, loss: float) -> float:
    """The distance at which slope or curvature changes the loss by `RISE`."""
    rise = RISE * abs(loss)
    by_slope = rise / abs(line.slope) if line.slope else math.inf
    by_curvature = math.sqrt(2 * rise / abs(line.curvature)) if line.curvature else math.inf
    least = min(by_slope, by_curvature)
    return least if math.isfinite(least) else 0.0


def _losses(
    closure: Closure, model: nn.Module, layout: Layout, origin: list[Tensor], v: Tensor, offsets: Sequence[float]
) -> list[float]:
    parts, losses = layout.split(v), []
    try:
        for offset in offsets:
            layout.put([o.add(part, alpha=offset) for o, part in zip(origin, parts, strict=True)])
            # Each from the same random state; gradients are on as in training, some closures differentiate inside.
            with undisturbed(model, closure), torch.enable_grad(), Rewrites():
                losses.append(closure().detach().double().reshape(()))
    finally:
        layout.put(origin)
    return torch.stack(losses).tolist()  # the one host sync


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= REPEATS * abs(b)
