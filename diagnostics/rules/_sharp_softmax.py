"""A softmax inside the network, as of attention, that is sure before anything was learned.

Source: Vaswani et al. 2017, section 3.2.1, on the scores' scale.
"""

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run


def sharp_from_start(
    kind: str,
    run: Run,
    history: signals.Loss,
    *,
    sure: float = 0.05,  # entropy over its largest, in the mean: rows below count as saturated
    untrained: float = 0.9,  # of the loss of an untrained network, at the start: what is sure now was not learned
    learned: float = 0.1,  # of it, at the end: learning was not held up
    large: float = 10.0,  # score: products that nobody scaled; e^10 is 20,000 times as much
) -> Finding | None:
    """Information where the loss comes down all the same: some networks choose so on purpose, by a low temperature, and
    what it costs them is not known. Where the loss stands, it is a plateau."""
    floor = signals.untrained(run)
    if not (history.start >= untrained * floor and learned * floor < history.end < untrained * floor):
        return None
    _, names, entropies = run.matrix("units", "entropy")
    typical = {at: signals.median(entropies[:, at]) for at, name in enumerate(names) if _inside(str(name))}
    _, _, scores = run.matrix("units", "max_input")
    sharp = [
        at for at, entropy in typical.items() if entropies[0, at] <= sure and entropy <= sure and scores[0, at] >= large
    ]
    if not sharp:
        return None
    worst = min(sharp, key=lambda at: float(entropies[0, at]))
    name, entropy = str(names[worst]), float(entropies[0, worst])
    largest = float(scores[0, worst])
    return Finding(
        kind,
        "initialization",
        "info",
        int(history.steps[0]),
        None,
        tuple(str(names[at]) for at in sharp),
        f"The {name} picked one entry of nearly every row at the first update, before anything was learned in this "
        f"run, and does so still: its entropy was {number(100 * entropy)} % of the largest and is "
        f"{number(100 * typical[worst])} % over the run (largest input at the start: {number(largest)}). Next to no "
        "gradient reaches what computes its scores.",
        {"entropy over largest": entropy, "largest input": largest, "loss at end": history.end},
        (
            "divide the scores by the square root of the keys' width, as scaled_dot_product_attention does",
            "or normalize queries and keys (RMSNorm, LayerNorm) before their product",
        ),
        (Chart("line", "units", ("entropy",), "Entropy over its largest", layers=(name,)),),
        r"\frac{\partial p_i}{\partial z_j} = p_i\,(\delta_{ij} - p_j) \to 0 \text{ where one } p \to 1",
    )


def _inside(name: str) -> bool:
    return not name.startswith("loss.")
