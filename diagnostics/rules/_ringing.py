"""Momentum so high that the weights ring back and forth for the whole run.

Source: lecture, "Momentum" ("if mu = 1, conservation of energy implies it will never settle down").
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

USUAL = 0.9  # momentum that the lecture recommends: where even its 20 updates are long, the run is short


def momentum_ringing(kind: str, run: Run, history: signals.Loss, memory: float, swing: float) -> Finding | None:
    """`memory`: share of the run within which nothing settles; `swing`: share of the level, or of all that the loss
    covers in the later half, from trough to crest; what comes later than one memory is not the start any more."""
    mu = signals.momentum(run)
    if mu <= USUAL or (mu >= 1 and signals.adaptive(run)):
        return None
    lasts = 2 / (1 - mu) if mu < 1 else np.inf
    if lasts < memory * history.count:
        return None
    swings = _swings(history.values[min(history.count // 2, int(min(lasts, history.count))) :], history.noise)
    largest = max((rise / low for rise, low, _ in swings), default=0.0)
    climbs = any(rise >= swing * covered for rise, _, covered in swings)
    late = signals.trend(history.values[2 * history.count // 3 :])
    unsettled = lasts >= history.count and history.end > 0.05 * history.start and late.relative < 0.2
    if largest < swing and not climbs and not unsettled:
        return None
    rate = signals.last_rate(run)
    calm = max(0.0, min(0.9, 1 - 2 / (memory / 3 * history.count)))
    best = _rate_for(run, mu, calm)
    return Finding(
        kind=kind,
        cause="momentum",
        severity="warning",
        first_step=int(history.steps[0]),
        last_step=None,
        layers=(),
        summary=(
            f"With momentum {mu:.6g} the updates remember {number(lasts)} steps in a run of "
            f"{history.count}: the loss "
            + (f"swings by {number(100 * largest)} % of its level and " if largest >= 0.01 else "")
            + "has not settled."
        ),
        evidence={"momentum": mu, "memory in updates": lasts, "largest swing": largest, "loss at end": history.end},
        remedies=(
            f"lower the momentum to {number(calm)}"
            + (
                f", with a learning rate of {number(best)} (now {number(rate)}): as close to the present terminal "
                "velocity as half the largest stable rate allows"
                if best > 1.01 * rate
                else ""
            ),
            "or raise the momentum from 0.5 as training goes on",
        ),
        charts=(
            Chart("line", "scalars", ("loss",), "Loss", log=True),
            Chart("line", "scalars", ("weight_norm",), "Norm of the weights"),
        ),
        formula=(
            rf"\frac{{2}}{{1-\mu}} = {tex(lasts)} \text{{ updates of memory}}, \qquad \text{{terminal "
            rf"velocity }} \frac{{\alpha}}{{1-\mu}} = {tex(rate / (1 - mu) if mu < 1 else np.inf)}"
        ),
    )


def _rate_for(run: Run, mu: float, lower: float) -> float:
    """The rate that keeps the terminal velocity eta / (1 - mu) at a lower momentum, within half of heavy ball's limit
    there, noise included. Steps of adaptive optimizers have the rate's own length at any momentum."""
    rate, ratio = signals.last_rate(run), signals.latest(run, "curvature", "stability")
    calmer = max(1 - mu, 1e-6) / (1 - lower)
    if not ratio > 0 or signals.adaptive(run):
        return rate
    then = ratio * (1 + mu) / (1 + lower) + signals.noise_term(run) * calmer  # at this rate
    return min(rate / calmer, 0.5 * rate / then)


def _swings(late: np.ndarray, noise: float, blocks: int = 40) -> list[tuple[float, float, float]]:
    """Rises of the smoothed loss that exceed its noise, with the level that each starts from and all that the smoothed
    loss covers."""
    late = late[np.isfinite(late)]
    size = max(1, len(late) // blocks)
    medians = np.median(late[: len(late) // size * size].reshape(-1, size), axis=1)
    error = 1.2533 * noise / np.sqrt(size)
    rises, low = [], medians[0] if len(medians) else 0.0
    crest = low
    for value in [*medians[1:], -np.inf]:
        if value > crest:
            crest = value
        elif value < low or crest - value > 0.5 * (crest - low):
            if crest - low > 5 * error and low > 0:
                rises.append((float(crest - low), float(low), float(np.ptp(medians))))
            low = crest = value
    return rises
