"""What several rules ask of a run: its loss against its own noise, its stability ratio.

Every quantity is free of scale: levels are compared with the noise of the run itself, lengths with the length of the
run. Nothing here decides; rules do.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from diagnostics.rules._rolling import lowest_median
from diagnostics.run import Run, not_told

MAD_TO_SD = 1.4826  # of a normal distribution
NOTHING = 0.9  # of the starting loss, at the end: nothing to speak of was learned
LEARNED = 0.7  # of the untrained loss: a run this far down learns all the same


class Missing(Exception):
    """A measurement that a rule needs and the run lacks; its text says which and how to record it."""


@dataclass(frozen=True)
class Trend:
    """How a noisy series moved over a window: second half against first half.

    `drop`: decrease of the level; `error`: its standard error from the series' own step-to-step noise;
    `relative`: drop over the size of the first level.
    """

    drop: float
    error: float
    relative: float

    @property
    def z(self) -> float:
        if self.drop == 0:
            return 0.0
        return self.drop / self.error if self.error > 0 else float(np.sign(self.drop)) * np.inf


@dataclass(frozen=True)
class Loss:
    """The recorded loss. `start`: its first value; `end`: median of the last twentieth (inf if not finite there);
    `best`: lowest level of a window of that length; `noise`: standard deviation from step to step."""

    steps: np.ndarray
    values: np.ndarray
    window: int
    start: float
    end: float
    best: float
    noise: float

    @property
    def count(self) -> int:
        return len(self.steps)

    @property
    def first_step(self) -> int:
        return int(self.steps[0])

    @property
    def middle_step(self) -> int:
        return int(self.steps[self.count // 2])

    @property
    def last_step(self) -> int:
        return int(self.steps[-1])

    @property
    def late_trend(self) -> Trend:
        """Of the later half."""
        return trend(self.values[self.count // 2 :])

    def after(self, step: int) -> np.ndarray:
        return self.values[self.steps >= step]


def level(values: np.ndarray) -> float:
    """Median, with NaN read as the worst that can happen."""
    return float(np.median(np.where(np.isnan(values), np.inf, values))) if len(values) else np.nan


def median(values: np.ndarray) -> float:
    """Median of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else np.nan


def median_error(values: np.ndarray) -> float:
    """Standard error of their median, from their spread; 0 for fewer than two."""
    finite = values[np.isfinite(values)]
    return (
        float(1.2533 * MAD_TO_SD * np.median(np.abs(finite - np.median(finite))) / len(finite) ** 0.5)
        if len(finite)
        else 0.0
    )


def step_noise(values: np.ndarray) -> float:
    """Standard deviation of the step-to-step noise: spread of the differences of neighbours over the root of two."""
    finite = values[np.isfinite(values)]
    if len(finite) < 3:
        return 0.0
    change = np.diff(finite)
    return float(MAD_TO_SD * np.median(np.abs(change - np.median(change))) / np.sqrt(2))


def trend(values: np.ndarray) -> Trend:
    """Decrease of the median from the first half to the second, in units of its own standard error."""
    finite = values[np.isfinite(values)]
    if len(finite) < 4:
        return Trend(0.0, np.inf, 0.0)
    half = len(finite) // 2
    first, second = np.median(finite[:half]), np.median(finite[half:])
    error = 1.2533 * step_noise(finite) * np.sqrt(1 / half + 1 / (len(finite) - half))  # of a difference of two medians
    return Trend(float(first - second), float(error), float((first - second) / max(abs(first), np.finfo(float).tiny)))


@lru_cache(maxsize=16)
def loss(run: Run) -> Loss:
    """The loss of the run; raises `Missing` where none was recorded."""
    table = run.table("scalars", ["step", "loss", "grad_norm"])
    if table.empty:
        raise Missing("scalars: no update was recorded; call monitor.step(loss) after optimizer.step()")
    if np.isnan(array(table, "loss")).all() and not nonfinite_events(run):
        raise Missing("loss: none was given to monitor.step")
    table = table.loc[~not_told(run, table)]
    steps, values = table["step"].to_numpy(), array(table, "loss")
    window = max(3, len(values) // 20)
    return Loss(
        steps=steps,
        values=values,
        window=window,
        start=float(values[0]),
        end=level(values[-window:]),
        best=lowest_median(values, min(window, len(values))),
        noise=step_noise(values),
    )


def untrained(run: Run) -> float:
    """The loss of a network that has learned nothing: its first one, or that of the same answer to every input where
    that is lower, as behind an initialization that begins far off."""
    _, constants = column(run, "constant_loss")
    return float(min(loss(run).start, np.median(constants) if len(constants) else np.inf))


def has_learned(run: Run, left: float = LEARNED) -> bool:
    """Whether no more than this part of the untrained loss is left at the end, counted from 0; of a loss below 0,
    whether it has fallen by the rest of its size."""
    begun = untrained(run)
    return begun - loss(run).end >= (1 - left) * abs(begun)


def column(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a column of `scalars`, where it was measured (NaN left out, Inf kept)."""
    table = run.table("scalars", ["step", name])
    values = table[name].to_numpy(dtype=float)
    kept = ~np.isnan(values)
    return table["step"].to_numpy()[kept], values[kept]


def always(run: Run, name: str, measured: int) -> np.ndarray:
    """The steps at which a column of `scalars` that answers a question was measured, if that was often enough and the
    answer was yes each time; none otherwise."""
    steps, answers = column(run, name)
    return steps if len(steps) >= measured and (answers == 1).all() else steps[:0]


def array(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as float64."""
    return table[name].to_numpy(dtype=float)


def tops(table: pd.DataFrame) -> np.ndarray:
    """The largest eigenvalue of each estimate, NaN where there is none."""
    return np.array([values[0] if len(values) else np.nan for values in table["eigenvalues"]], dtype=float)


@lru_cache(maxsize=16)
def curvature(run: Run) -> pd.DataFrame:
    """Estimates of the Hessian's spectrum, oldest first; raises `Missing` where none was made."""
    table = run.table("curvature")
    if table.empty:
        told = events(run, "measurement-off", "measurement-failed")
        reasons = told.loc[told["subject"] == "curvature", "message"]
        reason = str(reasons.iloc[-1]) if len(reasons) else "give monitor.step a closure that recomputes the loss"
        raise Missing(f"curvature: none was measured; {reason}")
    return table


def latest(run: Run, table: str, name: str, before: int | None = None) -> float:
    """The last measured value of a column, up to and including `before`; NaN if there is none."""
    frame = run.table(table, ["step", name])
    values = array(frame, name)
    values = values[~np.isnan(values) & (before is None or frame["step"].to_numpy() <= before)]
    return float(values[-1]) if len(values) else np.nan


def noise_term(run: Run) -> float:
    """Noise term of the stability budget at the last bracket; 0 where it was not measured."""
    value = latest(run, "batches", "noise_term")
    return value if np.isfinite(value) else 0.0


def whole_norms(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and norms of the gradients, before clipping where there is any."""
    table = run.table("scalars", ["step", "grad_norm", "grad_norm_unclipped"])
    return table["step"].to_numpy(), np.fmax(array(table, "grad_norm"), array(table, "grad_norm_unclipped"))


def loss_path(run: Run) -> str:
    """The functions between the model's output and the loss, "a -> b"; "" where none is known."""
    return str(run.meta["loss_path"])


def loss_calls(run: Run) -> list[str]:
    """The same, one by one; never empty."""
    return [each.strip() for each in loss_path(run).split("->")]


def events(run: Run, *kinds: str) -> pd.DataFrame:
    table = run.table("events")
    return table.loc[table["kind"].isin(kinds)]


# Subjects of functions that were given something outside of where they, or their derivatives, are finite.
DOMAIN = (
    "op:log",
    "op:div",
    "op:true_divide",
    "op:sqrt",
    "op:rsqrt",
    "op:pow",
    "op:reciprocal",
    "op:acos",
    "op:asin",
    "op:atanh",
    "op:norm",
    "op:std",
    "op:var",
    "op:ctc_loss",
    "op:__",
    "domain",
)


def nonfinite_events(run: Run) -> list[tuple[int, str, str]]:
    """(step, subject, message) of the first non-finite values that the monitor saw, oldest first."""
    table = events(run, "non-finite")
    return [
        (int(step), str(subject), str(text))
        for step, subject, text in zip(table["step"], table["subject"], table["message"], strict=True)
    ]


def first_nonfinite(run: Run) -> int | None:
    """Step at which the loss, or the gradient of an update that was made, was first not finite."""
    table = run.table("scalars", ["step", "loss", "grad_norm", "grad_norm_unclipped"])
    bad, gradients = ~np.isfinite(array(table, "loss")) & ~not_told(run, table), array(table, "grad_norm")
    failed = set(events(run, "measurement-failed")["subject"])
    if not np.isnan(gradients).all() and failed.isdisjoint(
        ("updates", "gradients")
    ):  # else not observed, or not always
        bad |= ~np.isfinite(gradients)
        bad |= (gradients == 0) & np.isinf(array(table, "grad_norm_unclipped"))  # divided by an infinite norm
    steps = table["step"].to_numpy()[bad]
    counted = steps[~np.isin(steps, events(run, "skipped-step")["step"].to_numpy())]
    found = [int(counted[0])] if len(counted) else []
    found += [step for step, subject, _ in nonfinite_events(run) if not subject.startswith("input")]
    return min(found) if found else None


def of_both_signs(losses: np.ndarray, *, often: float = 0.1) -> bool:
    """No error that is to come down, but as advantages weighed by what is 1 on average, whose sum tells nothing."""
    below = float((losses < 0).mean())
    return often <= below <= 1 - often


def first_step(run: Run) -> int:
    """Of the first recorded update."""
    return int(run.table("scalars", ["step"])["step"].iloc[0])


def total(run: Run) -> int:
    return len(run.table("scalars", ["step"]))


def inside(run: Run, name: str, first: int, last: int) -> np.ndarray:
    """Measured values of a column of `scalars` between two steps."""
    steps, values = column(run, name)
    return values[(steps >= first) & (steps <= last)]
