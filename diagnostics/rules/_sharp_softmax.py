"""A softmax inside the network, as of attention, that is sure before anything was learned.

Source: lecture, "Plateaux"; Vaswani et al. 2017, section 3.2.1, on the scores' scale.
"""

from typing import NamedTuple

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._stretches import Flat
from diagnostics.rules._words import number
from diagnostics.run import Run

NOTHING = 0.9  # of the loss of an untrained network: above, nothing was learned
_REMEDIES = (
    "divide the scores by the square root of the keys' width, as scaled_dot_product_attention does",
    "or normalize queries and keys (RMSNorm, LayerNorm) before their product",
)
_FORMULA = r"\frac{\partial p_i}{\partial z_j} = p_i\,(\delta_{ij} - p_j) \to 0 \text{ where one } p \to 1"


class Sharp(NamedTuple):
    """A softmax that is sure from its first record on: its entropies there and in the median, over the largest, and its
    largest input at first."""

    name: str
    first: float
    typical: float
    score: float

    @property
    def chart(self) -> Chart:
        return Chart("line", "units", ("entropy",), "Entropy over its largest", layers=(self.name,))


def _sharp(run: Run, first: int, last: int, sure: float) -> list[Sharp]:
    """Those below `sure` at the first record and between two steps, the surest at first before the others."""
    steps, names, entropies = run.matrix("units", "entropy")
    _, _, scores = run.matrix("units", "max_input")
    inside = entropies[(steps >= first) & (steps <= last)]
    found = [
        Sharp(str(name), float(entropies[0, at]), signals.median(inside[:, at]), float(scores[0, at]))
        for at, name in enumerate(names)
        if not str(name).startswith("loss.") and entropies[0, at] <= sure
    ]
    return sorted((each for each in found if each.typical <= sure), key=lambda each: each.first)


def hard_attention(
    kind: str, run: Run, stretch: Flat, *, certain: float = 0.01, nothing: float = NOTHING
) -> Finding | None:
    """A softmax inside the network, as of attention, that picks one entry from the start: what decides which gets the
    gradient times p (1 - p)."""
    compared = len(signals.column(run, "constant_loss")[1]) > 0  # else the loss may be a game's, which hovers
    if not compared or not stretch.level >= nothing * signals.untrained(run):
        return None
    hard = _sharp(run, stretch.first_step, stretch.last_step, certain)
    if not hard:
        return None
    worst = hard[0]
    return stretch.finding(
        kind,
        "hard-attention",
        (worst.name,),
        f"The {worst.name} picks one entry from the start and leaves nothing to the others: its entropy is "
        f"{number(100 * worst.typical)} % of the largest, its largest input {number(worst.score)}. What computes its "
        f"scores gets next to no gradient, and the loss {stretch.stood}.",
        {"entropy over largest": worst.typical, "largest input": worst.score, "loss": stretch.level},
        _REMEDIES,
        (LOSS, worst.chart),
        _FORMULA,
    )


def sharp_from_start(
    kind: str,
    run: Run,
    history: signals.Loss,
    *,
    sure: float = 0.05,  # entropy over its largest, in the mean: rows below count as saturated
    untrained: float = NOTHING,  # at the start: what is sure now was not learned
    learned: float = 0.1,  # of that loss, at the end: learning was not held up
    large: float = 10.0,  # score: products that nobody scaled; e^10 is 20,000 times as much
) -> Finding | None:
    """Information where the loss comes down all the same: some networks choose so on purpose, by a low temperature, and
    what it costs them is not known. Where the loss stands, it is a plateau."""
    floor = signals.untrained(run)
    if not (history.start >= untrained * floor and learned * floor < history.end < untrained * floor):
        return None
    first, last = history.first_step, history.last_step
    sharp = [each for each in _sharp(run, first, last, sure) if each.score >= large]
    if not sharp:
        return None
    worst = sharp[0]
    return Finding(
        kind,
        "initialization",
        "info",
        first,
        None,
        tuple(each.name for each in sharp),
        f"The {worst.name} picked one entry of nearly every row at the first update, before anything was learned in "
        f"this run, and does so still: its entropy was {number(100 * worst.first)} % of the largest and is "
        f"{number(100 * worst.typical)} % over the run (largest input at the start: {number(worst.score)}). Next to no "
        "gradient reaches what computes its scores.",
        {"entropy over largest": worst.first, "largest input": worst.score, "loss at end": history.end},
        _REMEDIES,
        (worst.chart,),
        _FORMULA,
    )
