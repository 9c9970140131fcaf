"""What the optimizer was told: its learning rates over the run, its other settings, its kind."""

from typing import Any

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.run import Run


def learning_rates(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Of the first parameter group; of Adagrad divided by what its own decay divides it by."""
    steps, rates = signals.column(run, "lr")
    return steps, rates / (1 + float(hyperparameter(run, "lr_decay", 0.0) or 0.0) * (steps - 1))


def at_full_rate(run: Run, when: np.ndarray, high: float = 0.5) -> np.ndarray:
    """Which of these steps came at no less than `high` of the highest rate: in the tail of a schedule all is slow."""
    steps, rates = learning_rates(run)
    if not len(rates):
        return np.ones(len(when), bool)
    return rates[np.searchsorted(steps, when, side="right") - 1] >= high * rates.max()


def rate_at(run: Run, steps: np.ndarray) -> float:
    """The rate at which these updates were made, as a stability ratio belongs to one; their median."""
    known, rates = learning_rates(run)
    if not len(rates) or not len(steps):
        return last_rate(run)
    return float(np.median(rates[np.clip(np.searchsorted(known, steps, side="right") - 1, 0, None)]))


def last_rate(run: Run) -> float:
    _, rates = learning_rates(run)
    return float(rates[-1]) if len(rates) else np.nan


def highest_rate(run: Run, until: int) -> float:
    """Up to and including an update."""
    steps, rates = learning_rates(run)
    before = rates[steps <= until]
    return float(before.max()) if len(before) else last_rate(run)


def hyperparameter(run: Run, name: str, default: Any = None) -> Any:
    """Of the first parameter group."""
    groups = run.meta["hyperparameters"] or [{}]
    return groups[0].get(name, default)


def momentum(run: Run) -> float:
    """The factor by which the optimizer's running mean of gradients decays: momentum of SGD and RMSprop,
    beta1 of Adam."""
    betas = hyperparameter(run, "betas")
    return float(betas[0]) if betas else float(hyperparameter(run, "momentum", 0.0) or 0.0)


def maximizes(run: Run) -> bool:
    return any(group.get("maximize") for group in run.meta["hyperparameters"])


def adaptive(run: Run) -> bool:
    """Whether the optimizer rescales coordinates by their own gradients, and so settles at s = 1 by itself."""
    name = str(run.meta["optimizer"])
    return any(word in name for word in ("Adam", "RMSprop", "Adagrad", "Adadelta", "Rprop"))
