"""Gradients that are clipped before a GradScaler has unscaled them: to a threshold that is meant for shorter ones.

Source: PyTorch's "Automatic Mixed Precision examples", "Gradient clipping"; Micikevicius et al. 2018, section 3.2.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _epsilon as epsilon
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import CLIPPED
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run


def clipped_scaled(
    run: Run,
    *,
    same: float = 1e-3,  # from update to update: norms in float16 or bfloat16 are no surer
    exact: float = 1e-4,  # their median is; by chance one number in a hundred lies so near one of two digits
    digits: int = 2,  # of a threshold as somebody writes it, and one more where that would acquit
    least: int = 5,  # updates
    scaled: float = 16.0,  # a scale that is too small to overflow anything is no mixed precision
) -> Iterator[Finding]:
    """What clipping leaves, times the scale, is a threshold as it would be typed, or does not change with the scale."""
    table = run.table("scalars", ["step", "grad_norm", "grad_norm_unclipped", "loss_scale"]).dropna()
    table = table.loc[(table["loss_scale"] >= scaled) & (table["grad_norm_unclipped"] > 0) & (table["grad_norm"] > 0)]
    left, whole, scale = (signals.array(table, str(name)) for name in table.columns[1:])
    cut = left < (1 - same) * whole
    if cut.sum() < least or cut.mean() < 0.5:  # what is hardly ever clipped is not what is wrong
        return
    thresholds, left, whole, scale = (x[cut] for x in (left * scale, left, whole, scale))
    threshold, norm = signals.median(thresholds), signals.median(left)
    if not _near(thresholds, threshold, same).all():
        return
    steady = _near(left, norm, same).all()  # as the scale was, so that either of the two may have been typed
    if steady and (not _typed(threshold, digits, exact) or _typed(norm, digits + 1, exact)):
        return
    share = signals.median(left / whole)
    yield found(
        "clipped-scaled",
        run,
        (
            f"Gradients are clipped while a GradScaler holds them {number(signals.median(scale))} times too long: a "
            f"threshold of {number(threshold)} leaves them {number(norm)} long, {number(100 * share)} % of what they "
            "are."
        ),
        ("call scaler.unscale_(optimizer) between backward() and clip_grad_norm_; scaler.step will not do it twice",),
        evidence={"loss scale": signals.median(scale), "threshold": threshold, "share left": share},
        severity="info" if epsilon.rescales(run) else "warning",  # Adam's steps do not depend on the length
        chart=CLIPPED,
    )


def _near(x: np.ndarray, value: float, same: float) -> np.ndarray:
    return np.abs(x - value) <= same * abs(value)


def _typed(x: float, digits: int, exact: float) -> bool:
    return abs(x - float(f"{x:.{digits}g}")) <= exact * abs(x)
