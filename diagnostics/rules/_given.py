"""What the loss is given: probabilities or mere cosines where it expects logits, or outputs that cannot come to their
targets.

Source: lecture, "Plateaux"; each is seen on the first forward, by the functions on the way and by the values.
"""

from dataclasses import replace

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS_AND_GRADIENT
from diagnostics.rules._explained import explained_late
from diagnostics.rules._far_targets import COMPARISONS
from diagnostics.rules._finding import Finding
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

_TWICE = {  # what squashes, the loss that squashes again, and the least that is left of it
    ("softmax", "cross_entropy"): (
        r"\mathcal{L} \ge \log\!\left(1 + (C - 1)\,e^{-1}\right) \quad\text{since}\quad 0 \le "
        r"\mathrm{softmax}(z)_c \le 1"
    ),
    ("sigmoid", "cross_entropy"): (
        r"\mathcal{L} \ge \log\!\left(1 + (C - 1)\,e^{-1}\right) \quad\text{since}\quad 0 \le \sigma(z_c) \le 1"
    ),
    ("tanh", "cross_entropy"): (
        r"\mathcal{L} \ge \log\!\left(1 + (C - 1)\,e^{-2}\right) \quad\text{since}\quad -1 \le \tanh z_c \le 1"
    ),
    ("sigmoid", "binary_cross_entropy_with_logits"): (
        r"\mathcal{L} \ge \log\!\left(1 + e^{-1}\right) = 0.31 \text{ where } t = 1, \; \ge \log 2 = 0.69 "
        r"\text{ where } t = 0, \quad\text{since}\quad 0 \le \sigma(z) \le 1"
    ),
}


_AFTERWARDS = "use {} only to read off probabilities after training"
# Keeps probabilities near [0, 1]: an epsilon, bounds, the mean of several. A gate's `mul` is recorded as a product.
BOUNDED = frozenset({"add", "clamp", "mul", "div", "mean"})
NEARLY_ALL = 0.9  # R squared: half of a normal target's variance is left where half of it is out of reach
NOTHING_LEFT = 0.99  # R squared: whatever holds up what is left, it is next to nothing
MOST_OF_IT = 0.5  # R squared: an output that follows its targets is not held at the end of its range
_STRETCHED = frozenset({"mul", "div"})  # by a temperature, as pointer networks do: logits again, of any size


def misused(kind: str, run: Run, history: signals.Loss) -> Finding | None:
    """The first of these that there is."""
    for each in (squashed_twice, out_of_reach, one_of_many, rate_of_a_rate, bounded_scores):
        if found := each(kind, run, history):
            return found
    return None


def warned(
    kind: str,
    cause: str,
    first_step: int,
    summary: str,
    evidence: dict[str, float],
    remedies: tuple[str, ...],
    formula: str,
) -> Finding:
    return Finding(
        kind, cause, "warning", first_step, None, (), summary, evidence, remedies, LOSS_AND_GRADIENT, formula
    )


def squashed_twice(kind: str, run: Run, history: signals.Loss) -> Finding | None:
    path = signals.loss_path(run)
    for (function, loss), formula in _TWICE.items():
        seen = run.meta["probabilities"] if function == "softmax" else None  # by the values themselves
        by_values = isinstance(seen, bool) and any(each in path for each in (loss, "log_softmax"))
        through = BOUNDED if function == "softmax" or loss != "cross_entropy" else BOUNDED - _STRETCHED
        if seen if by_values else goes_into(path, function, loss, through):
            return warned(
                kind,
                "double-softmax",
                history.first_step,
                (
                    f"The loss squashes twice ({path}): {loss} expects logits, but what {function} gives lies between "
                    f"{'-1' if function == 'tanh' else '0'} and 1, so the loss cannot come near 0 (it ended at "
                    f"{number(history.end)})."
                ),
                {"loss at end": history.end},
                (
                    f"remove the {function} before {loss}: return logits from the model",
                    *([] if function == "tanh" else [_AFTERWARDS.format(function)]),
                ),
                formula,
            )
    return None


def bounded_scores(kind: str, run: Run, history: signals.Loss, *, least: float = 0.9) -> Finding | None:
    """Cosines that a softmax is taken of, with a factor so small that the best answer there can be is next to none: the
    least loss is so large a part of log C. With the usual factors, of 2 and more, it is far less."""
    chance, floor = _least_cross_entropy(run)
    if not floor >= least * chance or not history.end >= max(floor, least * history.start):
        return None
    return _bounded(kind, run, history, chance, floor)


def near_its_bound(
    kind: str, run: Run, history: signals.Loss, *, much: float = 0.5, most: float = 0.75
) -> Finding | None:
    """As information, where the least loss of such cosines is a large part of log C, and most of the way there is gone:
    what is left of the loss tells nothing of what was learned."""
    chance, floor = _least_cross_entropy(run)
    gained = history.start - history.end
    if not floor >= much * chance or not history.start - floor >= gained >= most * (history.start - floor):
        return None
    return replace(_bounded(kind, run, history, chance, floor), severity="info")


def _least_cross_entropy(run: Run) -> tuple[float, float]:
    """log C, and the cross-entropy of the best cosines; NaN where scores are not bounded."""
    bound, classes = run.meta["score_bound"] or (np.inf, 0)
    if not bound > 0 or classes < 2 or not np.isfinite(bound):
        return np.nan, np.nan
    return float(np.log(classes)), float(np.log1p((classes - 1) * np.exp(-bound * classes / (classes - 1))))


def _bounded(kind: str, run: Run, history: signals.Loss, chance: float, floor: float) -> Finding:
    bound, classes = run.meta["score_bound"]
    return warned(
        kind,
        "bounded-scores",
        history.first_step,
        f"The softmax of the loss is taken of cosines, whose largest value is {number(bound)} here: with {classes} "
        f"classes its cross-entropy is {number(floor)} at best, where guessing has {number(chance)} (the loss ended at "
        f"{number(history.end)}).",
        {"largest score": bound, "classes": float(classes), "least cross-entropy": floor, "loss at end": history.end},
        (
            "divide cosines by a temperature, such as 0.07, or multiply them by a scale, such as 16: a factor below 1 "
            "here makes the scores smaller yet",
            "or let the scale be learned, as logits = cosines * log_scale.exp() with log_scale a parameter",
        ),
        r"\mathcal{L} \ge \log\!\left(1 + (C - 1)\,e^{-s\,C/(C-1)}\right) \quad\text{since}\quad "
        rf"|\text{{score}}| \le s = {tex(bound)}",
    )


_RANGES = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, np.inf), "softplus": (0.0, np.inf)}
_FLAT_END = r"\frac{\partial\mathcal{L}}{\partial z} = (y - t)\,\phi'(z) \to 0 \text{ where } y \text{ ends}"
_BY_HAND = {"sub", "pow", "abs", "mean", "sum", "div", "sqrt"}  # of a difference, one by one


def out_of_reach(kind: str, run: Run, history: signals.Loss) -> Finding | None:
    """Targets that the output's activation cannot give."""
    function, *calls = [*signals.loss_calls(run), ""]
    share = explained_late(run).share
    fits = share > NEARLY_ALL  # of what fits noise alone is out of reach
    if function not in _RANGES or (fits and not (share < NOTHING_LEFT and _held_up(run))):
        return None
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
    (least, most), (low, high) = _RANGES[function], targets
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
    share, (least, most) = signals.median(late), _RANGES[function]
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


def rate_of_a_rate(kind: str, run: Run, history: signals.Loss) -> Finding | None:
    """Counts are fewer than one on average, and the rate is the exponential of what is not negative: one at least."""
    function, behind, *_ = [*signals.loss_calls(run), ""]
    count = run.meta["mean_count"]
    if function not in {"softplus", "exp"} or behind != "exp" or not (count is not None and count < 1):
        return None
    return warned(
        kind,
        "target-range",
        history.first_step,
        (
            f"The loss takes the output for the logarithm of a rate, but it is a {function}, which is never negative: "
            f"the rate is 1 at least, where what it counts is {number(count)} on average (the loss ended at "
            f"{number(history.end)})."
        ),
        {"mean count": count, "loss at end": history.end},
        (
            f"leave the {function} at the output out",
            "or say that the output is the rate itself: F.poisson_nll_loss(rate, target, log_input=False)",
        ),
        r"\lambda = e^{y} \ge 1 \text{ where } y \ge 0",
    )


def goes_into(path: str, function: str, loss: str, through: frozenset[str]) -> bool:
    """Whether the values of a function are those that the loss gets, but for constants: behind a product with something
    else, as of a gate with an expert's answer, or a sum over positions, they are weights and not what is compared."""
    calls = [each.strip() for each in path.split("->")]
    if loss not in calls or function not in calls[: calls.index(loss)]:
        return False
    before = calls[: calls.index(loss)]
    last = len(before) - 1 - before[::-1].index(function)
    return set(before[last + 1 :]) <= through
