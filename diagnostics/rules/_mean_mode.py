"""The one steep direction that uncentred hidden units make, and whether it holds back all others.

Source: lecture, "Ill-conditioned curvature: normalization" ("hidden units may have non-centered activations").
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _signals as signals
from diagnostics.rules._rolling import recent_median
from diagnostics.run import Run


@dataclass(frozen=True)
class MeanMode:
    """The direction that the mean of logistic units makes steep, while the loss came down.

    `gap`: its eigenvalue over the next; `condition`: the same over the curvature along the path; `ratio`: stability
    ratio at the learning rate `rate`; `updates`: the run
    took for nine tenths of its fall; `layer`: whose `offset` is the largest, 1 + sum of squared means over variances.
    """

    gap: float
    condition: float
    ratio: float
    rate: float
    updates: int
    layer: str
    offset: float


def mean_mode_of_logistic_units(
    run: Run,
    history: signals.Loss,
    table: pd.DataFrame,
    wide: float,
    *,
    most: float = 0.5,  # of the fall, made after the steepest direction had settled
    lasting: float = 0.1,  # of the run: a fall, or a tenfold shrink along its path, that is over sooner costs nothing
) -> MeanMode | None:
    """Logistic units whose mean pins the rate for the directions in which the loss came down, `None` if they do not.

    The second moments of outputs with means m and variances V are V + m m': one eigenvalue stands out by
    1 + m' V^-1 m (`offset`) at most. Without it the next one would set the rate.
    """
    layer, offset = conditioning.logistic_offset(run)
    fall = history.start - history.end
    if optimizer.adaptive(run) or offset < wide or not fall > 0:
        return None
    smooth = recent_median(history.values, 5)
    updates = int(np.argmax(smooth <= history.start - 0.9 * fall))
    falling = table.loc[table["step"] <= history.steps[updates]]
    steepest = min(3 * limits.steps_along(falling, 1.0), history.count // 20)  # updates to a thousandth
    settled = float(smooth[int(steepest)])
    if updates < lasting * history.count or settled - history.end < most * fall:
        return None
    gap = signals.median(np.array([e[0] / e[1] if len(e) > 1 and e[1] > 0 else np.nan for e in falling["eigenvalues"]]))
    conditions = signals.array(falling, "condition")
    conditions = conditions[~np.isnan(conditions)]
    along = quadratic.condition(run, history.first_step, int(history.steps[updates]))
    condition = float(np.median(conditions)) if len(conditions) else along
    slow = 0.5 * limits.steps_along(falling, condition)  # the loss falls twice as fast as the distance
    if not (wide <= gap <= offset and condition >= wide and slow >= lasting * history.count):
        return None
    ratio, rate = (
        signals.median(signals.array(falling, "stability")),
        optimizer.rate_at(run, falling["step"].to_numpy()),
    )
    return MeanMode(gap, condition, ratio, rate, updates, layer, offset)
