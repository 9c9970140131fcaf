"""Whether the loss is any lower than that of one answer to everything: what was learned from the inputs.

Source: the null model of McFadden's pseudo R^2 (1974), which is R^2 where the loss is a squared error.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.run import Run

NONE = 1e-3  # R^2 that nobody sees: where each batch is all data, no noise hides it
LITTLE = 0.02  # R^2 below which even a noisy task would count as not learned; it must be known that well
_PART = "part of the loss that compares outputs with targets"


class Explained(NamedTuple):
    """R^2 = 1 - loss / constant, with its standard error; batch by batch, so that hard batches are hard for both."""

    share: float
    error: float
    loss: float
    constant: float
    partial: bool = False  # of the part of the loss that compares outputs with targets
    averaged: bool = False  # against the mean of the answers themselves

    def is_nothing(self, little: float) -> bool:
        """Not told from 0, or next to it, and surely less than `little`. Beside the mean of the answers themselves, to
        which no noise of the targets adds, and other terms of the loss, next to 0 is something."""
        next_to_nothing = 0.0 if self.averaged else NONE
        return self.share <= max(2 * self.error, next_to_nothing) and self.share + 3 * self.error < little

    @property
    def what(self) -> str:
        return _PART if self.partial else "loss"

    @property
    def constant_answer(self) -> str:
        return "the mean of its answers, given to every input," if self.averaged else "the same answer to every input"


def explained(run: Run, first: int, last: int, least: int = 2) -> Explained:
    """Over the updates measured between two steps, and at least so many of the last ones. Unknown where no late one is:
    the loss has become another one, as when a penalty begins to count; or nothing was measured for long, as the budget
    has it, and it came down since."""
    table = _compared(run)
    table = table.loc[table["step"] <= last]
    table = table.tail(max(least, int((table["step"] >= first).sum())))
    late = not table.empty and (table["step"].iloc[-1] >= first or _still_holds(run, table, first, last))
    if len(table) < least or not late:
        return Explained(np.nan, np.nan, np.nan, np.nan)
    losses, constants = signals.array(table, "loss"), signals.array(table, "constant_loss")
    constant = float(constants.mean())
    gained = (constants - losses) / constant
    error = float(gained.std(ddof=1) / len(table) ** 0.5)
    kinds = (bool(table[kind].any()) for kind in ("partial", "averaged"))
    return Explained(float(gained.mean()), error, float(losses.mean()), constant, *kinds)


def _still_holds(run: Run, table: pd.DataFrame, first: int, last: int) -> bool:
    """Whether the last comparison was the last that could be made, half of the steps in question before them at most,
    and the loss has not fallen below that of the constant answer since."""
    at, measured = int(table["step"].iloc[-1]), signals.column(run, "input_sum")[0]
    could = measured[measured <= last]
    if at < first - (last - first) / 2 or not len(could) or could[-1] != at or bool(np.any(table["partial"])):
        return False
    since = signals.inside(run, "loss", first, last)
    return signals.median(since) >= (1 - LITTLE) * float(signals.array(table, "constant_loss").mean())


def _compared(run: Run) -> pd.DataFrame:
    """Losses and those of constant answers; of the part that compares, where the loss is more than that; or those of
    the mean answer."""
    columns = ["loss", "constant_loss", "partial_loss", "partial_constant_loss", "answered_loss", "averaged_loss"]
    table = run.table("scalars", ["step", *columns])
    # Of losses below 0 no share is known, and the mean answer's is beside a larger one than that of the best one.
    both = table[["answered_loss", "averaged_loss"]]
    table["averaged"] = both.notna().all(axis=1) & bool(both.min(axis=None) > 0)
    # The part is no longer there where the rest has come down to nothing, and may be a small one where all is known.
    table["partial"] = table["partial_loss"].notna() & ~np.bool_(np.any(table["averaged"]))
    for kind, loss, constant in (
        ("partial", "partial_loss", "partial_constant_loss"),
        ("averaged", "answered_loss", "averaged_loss"),
    ):
        table["loss"] = table[loss].where(table[kind], table["loss"])
        table["constant_loss"] = table[constant].where(table[kind], table["constant_loss"])
    return table.dropna(subset=["loss", "constant_loss"])


def explained_late(run: Run) -> Explained:
    """Over the later half of the run."""
    steps = signals.loss(run).steps
    return explained(run, int(steps[len(steps) // 2]), int(steps[-1]))


def nothing_until(
    run: Run, step: int, *, longest: float = 0.25, updates: int = 100, measured: int = 5, little: float = LITTLE
) -> bool:
    """Whether the answers were worth no more than one to everything in the later half of all updates before a step, a
    quarter of the run at least and at no less than half the rate: what happened at that step is not why."""
    steps = signals.loss(run).steps
    before = int((steps < step).sum())
    if before < max(updates, longest * len(steps)):
        return False
    if 2 * optimizer.highest_rate(run, int(steps[before // 2])) < optimizer.highest_rate(run, step):
        return False
    return explained(run, int(steps[before // 2]), step - 1, measured).is_nothing(little)
