"""Whether all updates together were too short to change the network, as far as that shows without curvature.

Source: lecture, "Learning Rate" ("α too small: slow progress").
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _signals as signals
from diagnostics.run import Run


def moves(run: Run, updates_at_least: int = 0, until: int | None = None) -> dict[str, float]:
    """By how much each weight matrix was moved until a step, over its size, had all updates gone the same way, and had
    there been so many. Those whose updates were not measured, or that began at zero, are left out."""
    matrices = by_layer.matrices(run)
    steps, names, updates = by_layer.matrix(run, "layers", "update_norm")
    _, _, weights = by_layer.matrix(run, "layers", "weight_norm")
    counted = steps <= (steps[-1] if until is None else until)
    updates = np.where(np.isfinite(updates), updates, np.nan)[counted]
    count = max(signals.total(run) if until is None else until - signals.first_step(run) + 1, updates_at_least)
    return {
        name: float(count * np.nanmean(updates[:, at]) / weights[0, at])
        for at, name in enumerate(names)
        if name in matrices and weights[0, at] > 0 and not np.isnan(updates[:, at]).all()
    }


def moved_at_most(run: Run, updates_at_least: int = 0) -> float:
    """The most that any weight matrix was moved by; inf if unknown."""
    return max(moves(run, updates_at_least).values(), default=np.inf)


def as_initialized(run: Run, names: tuple[str, ...], *, sure: float = 3.0) -> bool:
    """Whether the first record, of weights that hardly move, shows all gains of their norms at 1, or without norms all
    matrices of the length that PyTorch's default gives them: u with variance 1 / (3 fan-in), and u^2 that varies by
    0.8 of its mean squared."""
    _, columns, lengths = by_layer.matrix(run, "layers", "weight_norm")
    layers, squares = by_layer.described(run), dict(zip(columns, lengths[0] ** 2, strict=True))
    layers = {name: each for name, each in layers.items() if name in squares}
    groups = {layers[name].get("group") for name in names if name in layers}
    gains = [
        squares[name] / each["parameters"]
        for name, each in layers.items()
        if each.get("group") in groups and "Norm" in by_layer.type_of(run, name) and name.endswith("weight")
    ]
    if gains:
        return all(abs(gain - 1) < 0.01 for gain in gains)
    linear = [name for name in names if name in layers and by_layer.type_of(run, name).startswith(("Linear", "Conv"))]
    drawn = [(squares[name], layers[name]["shape"][0] / 3, layers[name]["parameters"]) for name in linear]
    return len(drawn) > 0 and all(
        abs(square / expected - 1) < sure * (0.8 / count) ** 0.5 for square, expected, count in drawn
    )


def downhill_as_before(run: Run, history: signals.Loss, *, alike: float = 0.2) -> bool:
    """Whether the gradient is surely more than noise and as long as at the start: even the steepest direction, which
    goes first, is still ahead. At a floor it is noise, in a ravine the steep part of it has gone."""
    part, norms = history.count // 4, signals.whole_norms(run)[1]
    first, last = signals.median(norms[:part]), signals.median(norms[-part:])
    return signal.surely(run, history.first_step) > 0 and abs(last - first) <= alike * first
