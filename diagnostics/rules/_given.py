"""What the loss is given: probabilities or mere cosines where it expects logits, or what cannot come to its targets.

Source: lecture, "Plateaux"; each is seen on the first forward, by the functions on the way and by the values.
"""

from dataclasses import replace

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Finding
from diagnostics.rules._loss_finding import warned
from diagnostics.rules._out_of_reach import one_of_many, out_of_reach
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
_STRETCHED = frozenset({"mul", "div"})  # by a temperature, as pointer networks do: logits again, of any size


def misused(kind: str, run: Run, history: signals.Loss) -> Finding | None:
    """The first of these that there is."""
    for each in (squashed_twice, out_of_reach, one_of_many, rate_of_a_rate, bounded_scores):
        if found := each(kind, run, history):
            return found
    return None


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
