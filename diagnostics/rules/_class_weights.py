"""Weights of classes that make an imbalance worse instead of balancing it.

Source: inverse frequencies as weights (King and Zeng 2001, "Logistic Regression in Rare Events Data"): w_c n_c is then
the same for all classes.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number, tex
from diagnostics.run import Run


def class_weights(run: Run, *, often: float = 2.0, alike: float = 0.5) -> Iterator[Finding]:
    """Where one class is surely `often` times as frequent as another, the weights must follow the frequencies, as a
    whole, and of these two be as far apart but for a factor `alike` of the logarithm: what someone may weigh for the
    price of a mistake has no reason to. A weight of 0 leaves a class out."""
    told = run.meta["class_weights"]
    weights, counts = (np.array(each, dtype=float) for each in told or ([], []))
    kept = np.flatnonzero(weights > 0)
    if len(kept) < 2:
        return
    more, less = int(kept[counts[kept].argmax()]), int(kept[counts[kept].argmin()])
    fewest = counts[less] + 2 * counts[less] ** 0.5 + 1  # as many there may be on average, by chance
    if not counts[more] >= often * fewest or not _follow(weights[kept], counts[kept]):
        return
    times, heavier = counts[more] / max(counts[less], 1.0), weights[more] / weights[less]
    if not alike <= np.log(heavier) / np.log(times) <= 1 / alike:
        return
    balanced = counts.sum() / (len(kept) * np.maximum(counts, 1.0))
    proposed = ", ".join(number(each) for each in balanced)
    yield found(
        "class-weights",
        run,
        (
            f"The weights of the classes make their imbalance worse: in the batches that were looked at class {more} "
            f"is {number(times)} times as frequent as class {less}, and its weight in the loss is {number(heavier)} "
            f"times as large. A mistake in class {less} counts for next to nothing."
        ),
        (
            f"weigh each class by the inverse of its frequency, weight=torch.tensor([{proposed}])"
            if len(weights) <= 8
            else "weigh each class by the inverse of its frequency: weight = n / (classes * n_of_each)",
            "look at the order of the weights: they belong to the classes in the order of their numbers; pos_weight is "
            "negatives over positives",
        ),
        evidence={"times as frequent": float(times), "times the weight": float(heavier)},
        formula=rf"w_c \propto \frac{{1}}{{n_c}}, \quad \frac{{w_a n_a}}{{w_b n_b}} = {tex(heavier * times)}",
        severity="warning",
    )


def _follow(weights: np.ndarray, counts: np.ndarray) -> bool:
    """Whether more pairs of classes have the larger weight at the more frequent one than at the other."""
    pairs = [(weights[a] - weights[b]) * (counts[a] - counts[b]) for a, b in combinations(range(len(weights)), 2)]
    return np.sign(pairs).sum() > 0
