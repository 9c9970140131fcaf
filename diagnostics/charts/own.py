"""The optimizer of a run, as `dynamics` knows it, from what the run recorded of its settings."""

import numpy as np

from diagnostics.charts import dynamics
from diagnostics.run import Run, is_number

CLIPPED = 0.99  # of the norm before: clip_grad_norm_ adds 1e-6 to it, and 16-bit gradients are rounded
RESCALED = ("RMSprop", "Adam")  # which divide each weight's gradient by its size


def own_name(optimizer: str, group: dict) -> dynamics.Name:
    for name in RESCALED:
        if name.lower() in optimizer.lower():
            return name
    if not (is_number(group.get("momentum")) and group["momentum"]):
        return "gradient descent"
    return "Nesterov" if group.get("nesterov") else "momentum"


def moments(group: dict) -> list[float]:
    """Adam's betas; none where they are something else than numbers."""
    betas = group.get("betas")
    return list(betas) if isinstance(betas, list | tuple) and all(map(is_number, betas)) else []


def momentum(group: dict) -> float:
    """Of one parameter group, Adam's beta1 included; 0 where there is none."""
    given = [value for value in (group.get("momentum"), *moments(group)) if is_number(value) and value]
    return max(0.0, float(next(iter(given), 0.0)))


def swings_above(run: Run, recorded: float) -> float:
    """The s above which this run's steepest direction swings. `recorded` is the `oscillation_limit`: known only of
    optimizers that this holds for, and of another thing, updates that turn anti-correlated, which is the same for
    gradient descent alone. NaN where it is not known, or not one number."""
    groups = run.meta["hyperparameters"]
    if not groups or not np.isfinite(recorded):
        return float(recorded)
    looks_ahead = "nadam" in str(run.meta["optimizer"]).lower()
    found = {
        dynamics.swings_above("Nesterov" if looks_ahead or group.get("nesterov") else "momentum", momentum(group))
        for group in groups
    }
    return found.pop() if len(found) == 1 else float("nan")
