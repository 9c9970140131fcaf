"""A term of the loss that another one outweighs: the weights that both share learn what the other asks for.

Source: Kendall et al. 2018, "Multi-task learning using uncertainty to weigh losses"; Chen et al. 2018 (GradNorm).
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import LITTLE
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

_PULLS = Chart(
    "line", "terms", ("pull",), "Pull of each term at the weights they share, over that of the others", log=True
)


def outweighed(
    run: Run,
    *,
    looks: int = 2,  # of the later half: one batch may be odd
    turned: float = 1 / 30,  # of the others' pull: what turns the common direction by two degrees is not felt
    learned: float = 0.1,  # of the loss of the mean answer, by another term: the weights and the rate are able to
) -> Iterator[Finding]:
    """Only of a term that learned nothing itself: many are given little weight on purpose, and a last layer of their
    own may do all that they need."""
    steps, names, losses = run.matrix("terms", "loss")
    late = steps >= signals.loss(run).middle_step if len(steps) else np.zeros(0, dtype=bool)
    if late.sum() < looks:
        return
    means, pulls = (run.matrix("terms", column)[2] for column in ("mean_answer_loss", "pull"))
    with np.errstate(divide="ignore", invalid="ignore"):
        told_apart = np.where(means > 0, 1 - losses / means, np.nan)[late]
    share, error = told_apart.mean(0), told_apart.std(0, ddof=1) / len(told_apart) ** 0.5
    weak = (share + 2 * error < LITTLE) & (pulls < turned).all(0)
    if weak.any() and (share > learned).any():
        yield _finding(run, [str(each) for each in names], weak, share, losses[late].mean(0), pulls[late])


def _finding(
    run: Run, names: list[str], weak: np.ndarray, share: np.ndarray, losses: np.ndarray, pulls: np.ndarray
) -> Finding:
    at, other = int(np.flatnonzero(weak)[0]), int(np.nanargmax(share))
    pull = float(np.median(pulls[:, at]))
    return found(
        "outweighed",
        run,
        (
            f"The term {names[at]} is outweighed: at the weights that they share it pulls {number(1 / pull)} times "
            f"less than the others. These weights are trained for {names[other]}, which is down to "
            f"{number(losses[other])}; of {names[at]}, {number(losses[at])}, nothing was learned: the mean of its "
            "answers, given to every input, does no worse."
        ),
        (
            f"bring the terms to one scale: divide each by what it is at the start, or weigh {names[at]} "
            f"{number(float(f'{1 / pull:.1g}'))} times more",
            "standardize the targets of a squared error, (y - mean) / std: in hours, pixels or money it is millions "
            "of times a cross-entropy",
            "let the weights be learned, as exp(-s) * loss + s with one parameter s a term (Kendall et al. 2018)",
        ),
        evidence={"pull over that of the others": pull, "loss of the term": float(losses[at])},
        formula=rf"\|w_i \nabla_\theta \mathcal{{L}}_i\| = {tex(pull)}\;\big\|\textstyle\sum_{{j \ne i}} "
        r"w_j \nabla_\theta \mathcal{L}_j\big\|",
        severity="warning",
        chart=_PULLS,
    )
