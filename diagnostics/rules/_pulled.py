"""Labels of pairs the other way round: what is alike is pushed apart, and the rest pulled together.

Source: Hadsell et al. 2006, "Dimensionality reduction by learning an invariant mapping", whose label is 1 for pairs
that do not belong together; others have it for those that do.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules._charts import GRADIENTS
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run


def pairs_reversed(
    run: Run,
    *,
    looks: int = 4,  # at the 1st, 2nd, 4th and 8th measured update: what can be learned begins to show by then
    sure: float = 3.0,  # standard errors, of all looks together before any is turned
    each_sure: float = 1.0,  # and at each on average: those of a full batch are of the same pairs, and are one look
    learned: float = 0.5,  # of the others' distance: a threshold at half the margin tells most pairs apart
) -> Iterator[Finding]:
    """Told while little is learned: where pairs that look apart do belong together, a network finds out how."""
    seen = np.array(run.meta["pulled"], dtype=float).reshape(-1, 3)
    surely = (seen[:, 0] - seen[:, 1]) / np.maximum(seen[:, 2], np.finfo(float).tiny)
    begun = surely[: int(np.argmin(np.r_[surely, -1.0] > 0))]
    if len(seen) < looks or not len(begun):
        return
    if not begun.sum() >= sure * np.sqrt(len(begun)) or not begun.mean() >= each_sure:
        return
    (first, others, _), (pulled, last, _) = seen[0], seen[-1]
    if pulled < learned * last:
        return
    yield found(
        "pairs-reversed",
        run,
        (
            f"The loss pulls those pairs together that are less alike: before anything was learned they lay "
            f"{number(first)} apart and the others {number(others)}, and now, for all that was learned since, "
            f"{number(pulled)} and {number(last)}. Even random weights keep what is alike near, so the labels seem to "
            "be the other way round."
        ),
        (
            "exchange the labels, 1 - label, or the two terms: with 1 for pairs that belong together it is "
            "label * d**2 + (1 - label) * torch.clamp(margin - d, min=0)**2",
            "compare a few pairs by eye with what the loss makes of their labels",
        ),
        evidence={"distance of pairs pulled together": pulled, "distance of the others": last},
        formula=r"\mathcal{L} = y\,d^2 + (1-y)\max(0, m-d)^2, \quad y = 1 \text{ for pairs that belong together}",
        severity="warning",
        chart=GRADIENTS,
    )
