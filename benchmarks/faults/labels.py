"""Does a planted fault really hurt, does a healthy run really train? Decided from unwatched trainings alone.

A check looks at one seed and answers with a `Verdict`; a configuration keeps its label where at least four fifths of
its seeds agree. Nothing here knows what a diagnosis would say.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .spec import Case
from .train import Trace, Training

MARGIN = 0.05  # of the distance that the twin's loss falls
SLOWDOWN = 1.5  # times as many updates to the same loss
AGREEMENT = 0.8  # share of seeds
DEAD = 0.4  # share of a layer: as many dead units are a fault, planted or not
LOST = 0.1  # of what the loss had come down: a run that gives back more has come apart


@dataclass(frozen=True)
class Verdict:
    """Whether one seed confirms the label, and the numbers it rests on."""

    confirmed: bool
    reason: str


@dataclass(frozen=True)
class Pair:
    """One seed's trainings of a case: the planted one and, where there is one, its twin."""

    trace: Trace
    training: Training
    twin: Trace | None = None


def tail(values: list[float]) -> float:
    """Mean of the last tenth: where a training ended, bouncing included. Infinite once anything was not finite."""
    last = np.asarray(values[-max(3, len(values) // 10) :])
    return float(last.mean()) if np.isfinite(last).all() else math.inf


def reached(trace: Trace, level: float) -> float:
    """First judged update at or below a level; infinite if never."""
    return next((max(s, 1) for s, value in zip(trace.steps, trace.judged, strict=True) if value <= level), math.inf)


def worse(pair: Pair, margin: float = MARGIN, slowdown: float = SLOWDOWN) -> Verdict:
    """Ends higher than the twin by a margin of the twin's own descent, or takes longer to where it got itself."""
    assert pair.twin is not None
    end, twin_end, start = tail(pair.trace.judged), tail(pair.twin.judged), pair.twin.judged[0]
    if not math.isfinite(twin_end) or twin_end >= start:
        return Verdict(False, f"the twin does not train: {start:.3g} -> {twin_end:.3g}")
    if not math.isfinite(end):
        return Verdict(True, "the loss is not finite")
    excess = (end - twin_end) / (start - twin_end)
    level = end + 0.05 * abs(end)
    slower = reached(pair.trace, level) / reached(pair.twin, level)
    text = f"excess {excess:.3f} of the twin's descent, {slower:.2f} times the updates to {level:.3g}"
    return Verdict(excess >= margin or slower >= slowdown, text)


def well(pair: Pair, below: float = 0.5) -> Verdict:
    """Trains well: ends below this share of its starting loss and near the lowest it has been, finite throughout, and
    no layer lost its units by it."""
    start, end, dead = pair.trace.judged[0], tail(pair.trace.judged), unit_share(pair.training, "dead")
    width = max(3, len(pair.trace.judged) // 10)
    lowest = float(np.convolve(pair.trace.judged, np.full(width, 1 / width), "valid").min())
    allowed = min(below * start, lowest + LOST * (start - lowest))
    fine = bool(np.isfinite(pair.trace.losses).all()) and end <= allowed and dead < DEAD
    text = f"loss {start:.3g} -> {end:.3g}, must be at most {allowed:.3g}; {100 * dead:.0f} % of a layer dead"
    return Verdict(fine, text)


def worse_by_units(pair: Pair, property: str, share: float) -> Verdict:
    """Worse than the twin, and at the end so many units of some layer are dead, or saturated, on all data."""
    verdict, found = worse(pair), unit_share(pair.training, property)
    return Verdict(verdict.confirmed and found >= share, f"{verdict.reason}; {100 * found:.0f} % of a layer {property}")


def unit_share(training: Training, property: str) -> float:
    """Largest share of dead (never positive) or saturated (derivative below 5 % on 95 % of inputs) units of a layer."""
    shares = [0.0]

    def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        per_unit = output.movedim(1 if output.dim() == 4 else -1, 0).flatten(1)
        if property == "dead":
            shares.append((per_unit <= 0).all(1).float().mean().item())
        else:
            slope = 1 - per_unit**2 if isinstance(module, nn.Tanh) else 4 * per_unit * (1 - per_unit)
            shares.append(((slope < 0.05).float().mean(1) >= 0.95).float().mean().item())

    kinds = nn.ReLU if property == "dead" else nn.Tanh | nn.Sigmoid
    handles = [module.register_forward_hook(look) for module in training.model.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        training.model(training.x)
    for handle in handles:
        handle.remove()
    return max(shares)


def classes(incoming: Tensor, outgoing: Tensor, tolerance: float = 1e-4) -> int:
    """Number of classes of units with equal (incoming, outgoing) weights up to a common sign; one row a unit."""
    rows = torch.cat([incoming, outgoing], 1).double()
    scale = rows.norm(dim=1).max().clamp_min(1e-300)
    pairs = torch.minimum(torch.cdist(rows, rows), torch.cdist(rows, -rows)) <= tolerance * scale
    return len(torch.unique(pairs.int().argmax(1)))


def identical_units(pair: Pair, incoming: str, outgoing: str, at_least: int = 1) -> Verdict:
    """At least so many units are copies of others in incoming and outgoing weights, at the start and at the end."""
    end = dict(pair.training.model.named_parameters())
    counts = []
    for state in (pair.training.start, end):
        first = state[f"{incoming}.weight"].detach()
        units = len(first)
        rows = torch.cat([first.flatten(1), state[f"{incoming}.bias"].detach()[:, None]], 1)
        second = state[f"{outgoing}.weight"].detach()
        fan = second.unflatten(1, (units, -1)).transpose(0, 1).flatten(1)
        counts.append(units - classes(rows, fan))
    return Verdict(min(counts) >= at_least, f"{counts[0]} copies at the start, {counts[1]} at the end of {units} units")


def zero_gradient(pair: Pair, layers: tuple[str, ...]) -> Verdict:
    """The full-batch gradient of these layers' weights is exactly zero or absent, and the loss is not."""
    training = pair.training
    training.model.zero_grad()
    loss = training.loss(training.model, training.x, training.y)
    if loss.requires_grad:
        loss.backward()
    alive = [
        name
        for name, p in training.model.named_parameters()
        if name.startswith(layers) and p.grad is not None and p.grad.any()
    ]
    return Verdict(not alive and loss.item() > 0, f"alive: {', '.join(alive) or 'none'}; loss {loss.item():.3g}")


def unmoved(pair: Pair, layers: tuple[str, ...]) -> Verdict:
    """These trainable weights are bitwise what they were at the start."""
    end = dict(pair.training.model.named_parameters())
    moved = [n for n, p in pair.training.start.items() if n.startswith(layers) and not torch.equal(p, end[n])]
    return Verdict(not moved, f"moved: {', '.join(moved) or 'none'}")


def non_finite(pair: Pair) -> Verdict:
    """A loss or a weight became NaN or Inf, while the twin stays finite."""
    broken = not np.isfinite(pair.trace.losses).all() or any(
        not p.isfinite().all() for p in pair.training.model.parameters()
    )
    twin = pair.twin is None or bool(np.isfinite(pair.twin.losses).all())
    first = next((i + 1 for i, value in enumerate(pair.trace.losses) if not math.isfinite(value)), None)
    return Verdict(broken and twin, f"first loss that is not finite: update {first}; twin finite: {twin}")


CHECKS: dict[str, Callable[..., Verdict]] = {
    "worse": worse,
    "well": well,
    "worse-by-units": worse_by_units,
    "identical-units": identical_units,
    "zero-gradient": zero_gradient,
    "unmoved": unmoved,
    "non-finite": non_finite,
}


def check(case: Case, pair: Pair) -> Verdict:
    return CHECKS[case.evidence.name](pair, **dict(case.evidence.options))


def kept(verdicts: list[Verdict]) -> bool:
    """Enough seeds confirm the label."""
    return sum(v.confirmed for v in verdicts) >= AGREEMENT * len(verdicts) - 1e-9


def shown_at(trace: Trace, twin: Trace | None) -> int | None:
    """Update from which the loss itself shows the fault: above ten times its start or not finite, else the first judged
    update from which it stays above the twin by the margin. None where it never does."""
    limit = 10 * trace.losses[0]
    blown = next((i + 1 for i, v in enumerate(trace.losses) if not v <= limit), None)
    if twin is None or not math.isfinite(tail(twin.judged)):
        return blown
    margin = MARGIN * abs(twin.judged[0] - tail(twin.judged))
    above = [not a <= b + margin for a, b in zip(trace.judged, twin.judged, strict=False)]
    behind = next((max(s, 1) for i, s in enumerate(trace.steps[: len(above)]) if all(above[i:]) and above[i]), None)
    return min((s for s in (blown, behind) if s is not None), default=None)
