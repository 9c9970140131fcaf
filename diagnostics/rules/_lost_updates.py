"""Updates that rounding takes away: of weights in half precision, those smaller than half the distance between numbers.

Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision"; Zamirai et al. 2020, "Revisiting BFloat16
Training".
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _gradient_signal as gradient_signal
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number
from diagnostics.run import Run


def lost_to_rounding(
    run: Run,
    *,
    most: float = 0.75,  # of the weights: where a typical update is lost, not one of noise alone
    half: float = 0.5,  # of them: worth knowing
    measured: int = 3,
    high: float = 0.5,  # of the highest rate: at the end of a schedule nothing moves, and nothing needs to
) -> Iterator[Finding]:
    steps, names, shares = run.matrix("layers", "lost_fraction")
    entries = {name: int(each["parameters"]) for name, each in by_layer.described(run).items()}
    weights = np.array([entries.get(str(name), 0) for name in names], dtype=float)
    known = np.isfinite(shares) & (weights > 0)
    kept = known.any(1) & optimizer.at_full_rate(run, steps, high)
    if kept.sum() < measured:
        return
    counted = known[kept] * weights
    lost = (np.nan_to_num(shares[kept]) * counted).sum(1) / counted.sum(1)
    share = float(np.median(lost))
    if not share >= half:
        return
    typical = min(most, share)
    severity = "info" if share < most else "warning" if _held_up(run) else unless_it_learns(run, "warning")
    layers = tuple(str(name) for at, name in enumerate(names) if signals.median(shares[kept][:, at]) >= typical)
    yield found(
        "lost-to-rounding",
        run,
        (
            f"Rounding takes the update away from {number(100 * share)} % of the weights: they have a gradient and "
            "stay exactly as they were, since in half precision a change much smaller than its weight is rounded off."
        ),
        (
            "keep the weights in float32 and compute in half precision: torch.autocast around the forward, in place of "
            "model.to(torch.bfloat16)",
            "or add a float32 copy of the weights, stochastic rounding or compensated summation to the optimizer",
        ),
        evidence={"share of weights that an update leaves as they were": share, "measured updates": float(kept.sum())},
        step=int(steps[kept][lost >= typical][0]),
        layers=layers,
        formula=(
            r"|\Delta w| < 2^{-9}\,|w| \;\Rightarrow\; \mathrm{fl}(w + \Delta w) = w \quad"
            r"\text{(bfloat16; } 2^{-12} \text{ in float16)}"
        ),
        severity=severity,
        chart=Chart(
            "line", "layers", ("lost_fraction",), "Share of weights that an update leaves as they were", layers=layers
        ),
    )


def _held_up(run: Run, *, level: float = 0.8, signal: float = 0.1) -> bool:
    """Whether the loss has kept four fifths of its level over the later half, though gradients agree on a way down: of
    their squares a tenth is signal, two errors down."""
    history = signals.loss(run)
    middle = signals.level(history.values[history.steps <= history.middle_step][-history.window :])
    return history.end >= level * middle > 0 and gradient_signal.surely(run, history.middle_step) >= signal
