"""Inputs that change while training: data that each reading rescales once more, or adds noise to.

Source: NumPy and PyTorch, whose `/=` and `+=` write to the array that an item of a data set is a view of.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number
from diagnostics.run import Run


def inputs_change(
    run: Run,
    *,
    measured: int = 8,
    times: float = 10.0,  # as large at last as at first, or as small: augmentation and curricula change less
    all_features: float = 0.9,  # of those that vary at all; where a mean is subtracted too, padding may stay as it is
    most_features: float = 0.5,
) -> Iterator[Finding]:
    if not len(signals.column(run, "constant_loss")[1]):
        return  # without targets the inputs may be another network's outputs, or states that a policy leads to
    for column, what, share in (
        ("batch_rms", "root mean square", all_features),
        ("batch_std", "deviation within a batch", most_features),
    ):
        _, names, sizes = run.matrix("inputs", column)
        change = _change(sizes) if len(sizes) >= measured and not np.isnan(sizes).any() else None
        if change is None or change.alike < share or 1 / times < change.factor < times:
            continue
        if column == "batch_std" and not (change.factor < 1 and _moves(run, change.of)):
            continue
        first, last = change.first, change.last
        yield found(
            "inputs-change",
            run,
            (
                f"The inputs {'grow' if change.factor > 1 else 'shrink'} while training, {change.features} features "
                f"alike: their {what} was {number(first)} in the first batches that were measured and is "
                f"{number(last)} in the last. Each reading seems to rescale the stored data once more."
            ),
            (
                "make a new tensor in the data set's __getitem__: x = (x - mean) / std, not x -= mean or x /= 255, "
                "which write to the stored one",
                "or transform all data once, before training",
            ),
            evidence={"size at first": first, "size at last": last},
            severity=unless_it_learns(run, "critical"),
            chart=Chart("line", "inputs", (column,), "Size of the inputs", tuple(names[change.of]), log=True),
        )
        return


class _Change(NamedTuple):
    """Of the features that vary. `alike`: the share of these that grow by the `factor` of the middle one."""

    factor: float
    of: np.ndarray  # (features,) bool: these
    alike: float
    first: float
    last: float

    @property
    def features(self) -> str:
        return "all" if self.alike >= 1 else f"{number(100 * self.alike)} % of the"


def _moves(run: Run, features: np.ndarray, *, by: float = 0.5) -> bool:
    """Whether the means of most of these went elsewhere, by half of a deviation of the first batches: subtracting and
    dividing again and again leads to one constant, while a range that narrows has the middle that it had."""
    squares, spreads = (run.matrix("inputs", column)[2][:, features] ** 2 for column in ("batch_rms", "batch_std"))
    means = np.sqrt(np.maximum(squares - spreads, 0))
    early, late = np.median(means[:3], axis=0), np.median(means[-len(means) // 4 :], axis=0)
    return bool(np.median(np.abs(late - early) / np.sqrt(np.median(spreads[:3], axis=0) + 1e-30)) >= by)


def _change(
    sizes: np.ndarray,
    together: float = 1.5,  # features' factors, of their median: data that are others change by feature
    vast: float = 100.0,  # a factor that no change of data makes: channels that are divided by their own deviations
) -> _Change | None:
    early, late = np.median(sizes[:3], axis=0), np.median(sizes[-len(sizes) // 4 :], axis=0)
    tiny = 1e-6 * max(early.max(), late.max())  # below, a feature that hardly varies
    seen = (early > tiny) | (late > tiny)
    if not seen.any():
        return None
    early, late = np.maximum(early[seen], tiny), np.maximum(late[seen], tiny)
    factors = late / early
    factor = float(np.median(factors))
    alike = (factors <= together * factor) & (factors >= factor / together) | (np.minimum(early, late) <= tiny)
    alike |= (factors >= vast) if factor > 1 else (factors <= 1 / vast)
    first, last = (float(np.sqrt(np.mean(each[alike] ** 2))) if alike.any() else np.nan for each in (early, late))
    of = seen.copy()
    of[seen] = alike
    return _Change(factor, of, float(alike.mean()), first, last)


def noise_piles_up(
    run: Run,
    *,
    measured: int = 12,
    grown: float = 1.15,  # mean square at last, of that at first
    straight: float = 0.9,  # of its variance is a straight line in time: independent noise adds up its variances
    steady: float = 1.5,  # slopes of the two halves, one over the other: most schedules raise the deviation
    alike: float = 0.5,  # of the middle feature's growth: drifting data grow by feature
    features: int = 3,  # to tell that
    sure: float = 3.0,  # standard errors by which the loss rises in the later half
) -> Iterator[Finding]:
    """Where the loss rises with it: augmentation as such adds the same to every batch."""
    steps, _, sizes = run.matrix("inputs", "batch_rms")
    if len(sizes) < measured or sizes.shape[1] < features or np.isnan(sizes).any():
        return
    if not len(signals.column(run, "constant_loss")[1]):
        return
    history, squares = signals.loss(run), sizes.astype(float) ** 2
    if signals.trend(history.after(history.middle_step)).z > -sure:
        return
    times, part, total = np.asarray(steps, dtype=float), max(3, len(squares) // 8), squares.mean(1)
    first, last = np.median(squares[:part], axis=0), np.median(squares[-part:], axis=0)
    if not np.median(total[-part:]) >= grown * np.median(total[:part]):
        return
    slope, start = np.polyfit(times, total, 1)
    fit = 1 - np.var(total - start - slope * times) / np.var(total)
    halves = [np.polyfit(times[half], total[half], 1)[0] for half in np.array_split(np.arange(len(times)), 2)]
    growth = last - first
    middle = float(np.median(growth))
    together = np.mean(np.abs(growth - middle) <= alike * middle)
    if fit < straight or not 1 / steady < halves[1] / halves[0] < steady or together < 0.5:
        return
    before, after = (float(np.sqrt(each.mean())) for each in (first, last))
    yield found(
        "inputs-change",
        run,
        (
            f"The inputs grow from a root mean square of {number(before)} to {number(after)} while training, the "
            "square by as much in each update and of each feature, as noise does that is added to what was added "
            "before; and the loss rises with it. Each reading seems to add noise to the stored data."
        ),
        (
            "make a new tensor: x = x + noise, not x += noise, which writes to the stored data that x is a view of",
            "or augment a copy: x = data[i].clone()",
        ),
        evidence={
            "size at first": before,
            "size at last": after,
            "loss at best": history.best,
            "loss at end": history.end,
        },
        severity="info",  # so may a schedule that mixes in a share that grows with time
        chart=Chart("line", "inputs", ("batch_rms",), "Size of the inputs"),
    )
