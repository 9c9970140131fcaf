"""How far updates could lead: along themselves, the steepest direction, and downhill; and whether they go straight on.

Source: lecture, "Learning Rate".
"""

import numpy as np

from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.run import Run

REST = 1e-6  # of the loss: less is nowhere to go


def reach(run: Run, history: signals.Loss, since: int) -> float:
    """What all updates together could lower the loss by, to first order: the sum of |u| |g|, of which only the part
    counts that is signal, as far as there surely is one: the noise of the batches leads nowhere."""
    product = signals.array(run.table("scalars", ["update_norm"]), "update_norm") * _own_norms(run)[1]
    product = product[np.isfinite(product)]
    share = signal.share(run, since) if signal.surely_at_least(run, since) > 0 else 1.0
    return float(product.mean() * history.count * share) if len(product) else np.inf


def _own_norms(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Of the loss's own gradients."""
    steps, norms = signals.whole_norms(run)
    return steps, norms / steps_made.loss_scale(run)


def shrunk(run: Run) -> float:
    """Logarithm of what all updates together divide the distance along the steepest direction by."""
    known = run.table("curvature", ["step", "progress"]).dropna()
    steps, progress = known["step"].to_numpy(), known["progress"].to_numpy()
    return float(np.nansum(limits.held(*optimizer.learning_rates(run), steps, progress))) if len(known) else np.inf


def downhill(run: Run, history: signals.Loss, since: int, surely: float) -> float:
    """What plain gradient descent at 1/lambda_max would take off the loss in as many updates, |G|^2/2 lambda_max each,
    were the signal to stay as it is: at a floor of the data there is none. NaN where no curvature is known."""
    steps, norms = _own_norms(run)
    norms = norms[(steps >= since) & np.isfinite(norms)]
    tops = signals.tops(signals.curvature(run))
    tops = tops[np.isfinite(tops)]
    if not len(norms) or not len(tops) or tops[-1] <= 0:
        return np.nan
    return surely * float(np.median(norms**2)) * history.count / (2 * float(tops[-1]))


def at_rest(run: Run, history: signals.Loss, since: int) -> bool:
    """Not even all of the gradient, noise included, leads anywhere."""
    return downhill(run, history, since, 1.0) < REST * abs(history.end)


def straight(run: Run, since: int, *, updates: int = 100, aligned: float = 0.9) -> bool:
    """Whether gradients and updates all pointed the same way: one as long as all together would have gone as far. Of
    batches alike within and among each other, as of one class, that says nothing."""
    steps, cosines = signals.column(run, "update_cosine")
    _, spread = signals.column(run, "target_spread")
    if signals.total(run) < updates or (spread < 0.5).any():
        return False
    by_updates = signals.median(cosines[steps >= since]) >= aligned
    return by_updates and signals.median(signal.cosines(run, since)) >= aligned
