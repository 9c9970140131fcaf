"""Outputs that cannot come to their targets, by the range of the function that they come from, or by their sum.

Source: lecture, "Plateaux"; seen by the functions on the way and by the targets.
"""

from dataclasses import replace

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import explained_late
from diagnostics.rules._far_targets import COMPARISONS
from diagnostics.rules._finding import Finding
from diagnostics.rules._loss_finding import warned
from diagnostics.rules._words import number
from diagnostics.run import Run

NEARLY_ALL = 0.9  # R squared: half of a normal target's variance is left where half of it is out of reach
NOTHING_LEFT = 0.99  # R squared: whatever holds up what is left, it is next to nothing
MOST_OF_IT = 0.5  # R squared: an output that follows its targets is not held at the end of its range
RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, np.inf), "softplus": (0.0, np.inf)}
_FLAT_END = r"\frac{\partial\mathcal{L}}{\partial z} = (y - t)\,\phi'(z) \to 0 \text{ where } y \text{ ends}"
_BY_HAND = {"sub", "pow", "abs", "mean", "sum", "div", "sqrt"}  # of a difference, one by one


def out_of_reach(kind: str, run: Run, history: signals.Loss) -> Finding | None:
    """Targets that the output's activation cannot give."""
    function, *calls = [*signals.loss_calls(run), ""]
    share = explained_late(run).share
    fits = share > NEARLY_ALL  # of what fits noise alone is out of reach
    if function not in RANGES or (fits and not (share < NOTHING_LEFT and _held_up(run))):
        return None
    if (function, calls[0]) == ("relu", "cross_entropy"):
        return None if fits else _scores_cut_off(kind, run, history)
    if calls[0] in COMPARISONS:
        found = _by_range(kind, run, history, function)
        if found is not None or fits:
            return found
    compared = calls[0] in COMPARISONS or (calls[0] == "sub" and set(calls[:-1]) <= _BY_HAND)
    return _by_share(kind, run, history, function) if compared else None


def _held_up(run: Run) -> bool:
    """Whether nearly all of what is left of the error is asked of answers that are 0: of noise, a part is."""
    return _held(run) >= NEARLY_ALL


def _held(run: Run) -> float:
    """What of the error is left at outputs that cannot come to their targets; NaN where it is not known."""
    held = signals.column(run, "unreachable_error")[1]
    return signals.median(held[len(held) // 2 :])


def _by_range(
    kind: str,
    run: Run,
    history: signals.Loss,
    function: str,
    *,
    part: float = 0.1,  # of the targets' range: less is the margin of a label that was smoothed
    mostly: float = 0.5,  # of the error
) -> Finding | None:
    """By a good part of the targets' own range, where not most of the error is left within reach, as of noise."""
    targets = run.meta["targets"]
    if len(targets) < 2 or _held(run) < mostly:
        return None
    (least, most), (low, high) = RANGES[function], targets
    margin = part * (high - low)
    if not (low < least - margin or high > most + margin):
        return None
    values = f"between {number(least)} and {number(most)}" if np.isfinite(most) else "that are not negative"
    return warned(
        kind,
        "logistic-least-squares" if np.isfinite(most) else "target-range",
        history.first_step,
        (
            f"The output is a {function}, which gives numbers {values}, but the targets lie between {number(low)} and "
            f"{number(high)}: it is driven to its flat end, where there is no gradient, and the loss cannot come near "
            f"0 (it ended at {number(history.end)})."
        ),
        {"loss at end": history.end, "smallest target": low, "largest target": high},
        (
            f"leave the {function} at the output out",
            f"or bring the targets into its range: t = (t {'-' if low >= 0 else '+'} {number(abs(low))}) / "
            f"{number(high - low)}",
        ),
        _FLAT_END,
    )


def _by_share(
    kind: str, run: Run, history: signals.Loss, function: str, *, part: float = 0.1, measured: int = 3
) -> Finding | None:
    """By what is asked of the outputs, as far as their gradient tells, in the later half of the run."""
    steps, shares = signals.column(run, "unreachable_fraction")
    late = shares[len(shares) // 2 :]
    if len(late) < measured or not signals.median(late) >= part:
        return None
    share, (least, most) = signals.median(late), RANGES[function]
    if np.isfinite(most) and explained_late(run).share > MOST_OF_IT:
        return None  # a few are out of reach, as noise is
    if np.isfinite(most):
        values = f"between {number(least)} and {number(most)}"
        seen = f"{number(100 * share)} % of the targets lie well outside: there its flat end gives next to no gradient"
        formula = _FLAT_END
        scaled = "or bring the targets into its range"
    else:
        values = "that are not negative"
        seen = f"{number(100 * share)} % of the outputs are 0 while their targets lie below: there is no gradient"
        formula = r"\frac{\partial\mathcal{L}}{\partial z} = (y - t)\,\phi'(z) = 0 \text{ where } z < 0"
        scaled = "or bring the targets into its range: t = t - min(t)"
    return warned(
        kind,
        "logistic-least-squares" if np.isfinite(most) else "target-range",
        int(steps[0]),
        (
            f"The output is a {function}, which gives numbers {values}, but {seen}, and the loss cannot come near 0 "
            f"(it ended at {number(history.end)})."
        ),
        {"loss at end": history.end, "share of targets out of reach": share},
        (f"leave the {function} at the output out", scaled),
        formula,
    )


def _scores_cut_off(
    kind: str,
    run: Run,
    history: signals.Loss,
    *,
    mostly: float = 0.5,  # of the loss: with less, what is left lies elsewhere
    measured: int = 3,
) -> Finding | None:
    """Where most of what is left is the loss of examples for whose class a ReLU gives 0, in the later half."""
    steps, costs = signals.column(run, "cut_off_loss")
    late = costs[len(costs) // 2 :]
    if len(late) < measured or not signals.median(late) >= mostly * history.end:
        return None
    cost = signals.median(late)
    found = warned(
        kind,
        "target-range",
        int(steps[0]),
        (
            "The scores that a cross-entropy is given come from a ReLU. Where it makes that of the right class 0, no "
            f"gradient comes through to raise it: such examples make up {number(cost)} of the loss at least, which "
            f"ended at {number(history.end)}."
        ),
        {"loss at end": history.end, "loss of what is cut off": cost},
        ("leave the relu at the output out: scores may have any sign",),
        r"z_t < 0 \;\Rightarrow\; \frac{\partial\mathcal{L}}{\partial z_t} = (p_t - 1)\,\phi'(z_t) = 0",
    )
    _, names, hidden = run.matrix("units", "hidden")
    outputs = [str(name) for name, inside in zip(names, hidden[-1], strict=True) if inside == 0] if len(hidden) else []
    return replace(found, layers=tuple(outputs))


def one_of_many(kind: str, run: Run, history: signals.Loss, *, part: float = 0.5, measured: int = 3) -> Finding | None:
    """A softmax where several may be right at once, or none: its outputs sum to 1, and most targets (`part`) do not; of
    a few it may be background, or noise."""
    function, loss, *_ = [*signals.loss_calls(run), ""]
    steps, shares = signals.column(run, "unreachable_fraction")
    late = shares[len(shares) // 2 :]
    if function != "softmax" or loss not in {"binary_cross_entropy", *COMPARISONS} or len(late) < measured:
        return None
    share = signals.median(late)
    if not share >= part:
        return None
    return warned(
        kind,
        "target-range",
        int(steps[0]),
        (
            f"The output is a softmax, but {number(100 * share)} % of the targets do not sum to 1: where k numbers are "
            f"to be 1, each is 1/k at best, and the loss cannot come near 0 (it ended at {number(history.end)})."
        ),
        {"loss at end": history.end, "share of examples out of reach": share},
        (
            "return logits and use F.binary_cross_entropy_with_logits: each label then has a sigmoid of its own",
            "or, where one label alone is meant to be right, mend the targets",
        ),
        r"\sum_c \mathrm{softmax}(z)_c = 1 \ne \sum_c t_c",
    )
