"""A term of the loss, or one of an answer's numbers, that another one outweighs: the weights that both share learn what
the other asks for.

Source: Kendall et al. 2018, "Multi-task learning using uncertainty to weigh losses"; Chen et al. 2018 (GradNorm).
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.metrics import OUTPUT
from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import LITTLE
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import names_of, number, tex
from diagnostics.run import Run

_PULLS = Chart(
    "line", "terms", ("pull",), "Pull of each term at the weights they share, over that of the others", log=True
)
_TERMS = (
    "standardize the targets of a squared error, (y - mean) / std: in hours, pixels or money it is millions of times a "
    "cross-entropy",
    "let the weights be learned, as exp(-s) * loss + s with one parameter s a term (Kendall et al. 2018)",
)
_OUTPUTS = (
    "standardize each column of the targets for training, (y - y.mean(0)) / y.std(0), and scale predictions back: a "
    "squared error counts a column by the square of its unit",
    "or divide each column's error by the variance of its targets",
)


def outweighed(
    run: Run,
    *,
    looks: int = 2,  # of the later half: one batch may be odd
    turned: float = 1 / 30,  # of the others' pull: what turns the common direction by two degrees is not felt
    learned: float = 0.1,  # of the loss of the mean answer, by another term: the weights and the rate are able to
) -> Iterator[Finding]:
    """Only of one that learned nothing itself: many are given little weight on purpose, and a last layer of their
    own may do all that they need."""
    steps, names, losses = run.matrix("terms", "loss")
    late = steps >= signals.loss(run).middle_step if len(steps) else np.zeros(0, dtype=bool)
    if late.sum() < looks:
        return
    means, pulls = (run.matrix("terms", column)[2] for column in ("mean_answer_loss", "pull"))
    with np.errstate(divide="ignore", invalid="ignore"):
        told_apart = np.where(means > 0, 1 - losses / means, np.nan)[late]
    told_apart = np.maximum(told_apart, -LITTLE)  # worse than nothing is nothing, however much it varies
    share, error = told_apart.mean(0), told_apart.std(0, ddof=1) / len(told_apart) ** 0.5
    weak = (share + 2 * error < LITTLE) & (pulls < turned).all(0)
    if weak.any() and (share > learned).any():
        yield _finding(run, [str(each) for each in names], weak, share, losses[late].mean(0), pulls[late])


def _finding(
    run: Run, names: list[str], weak: np.ndarray, share: np.ndarray, losses: np.ndarray, pulls: np.ndarray
) -> Finding:
    at, other = int(np.flatnonzero(weak)[0]), int(np.nanargmax(share))
    pull, subject = float(np.median(pulls[:, at])), _subject([names[each] for each in np.flatnonzero(weak)])
    return found(
        "outweighed",
        run,
        (
            f"{subject} outweighed: at the weights that all share {names[at]} pulls {number(1 / pull)} times less than "
            f"the others. These weights are trained for {names[other]}, which is down to {number(losses[other])}; of "
            f"{names[at]}, {number(losses[at])}, nothing was learned: the mean of its answers, given to every input, "
            "does no worse."
        ),
        _OUTPUTS if names[at].startswith(OUTPUT) else (_weigh(names[at], pull), *_TERMS),
        evidence={"pull over that of the others": pull, "loss of the term": float(losses[at])},
        formula=rf"\|w_i \nabla_\theta \mathcal{{L}}_i\| = {tex(pull)}\;\big\|\textstyle\sum_{{j \ne i}} "
        r"w_j \nabla_\theta \mathcal{L}_j\big\|",
        severity="warning",
        chart=_PULLS,
    )


def _subject(weak: list[str]) -> str:
    if weak[0].startswith(OUTPUT):
        numbers = names_of([name.removeprefix(OUTPUT) for name in weak])
        return f"Output {numbers} (the first is 0) is" if len(weak) == 1 else f"Outputs {numbers} (the first is 0) are"
    return f"The term {weak[0]} is" if len(weak) == 1 else f"The terms {names_of(weak)} are"


def _weigh(name: str, pull: float) -> str:
    return (
        f"bring the terms to one scale: divide each by what it is at the start, or weigh {name} "
        f"{number(float(f'{1 / pull:.1g}'))} times more"
    )
