"""Attention that is not told the positions of its tokens: its answer is the same for them in any order.

Source: Vaswani et al. (2017), section 3.5 ("Positional Encoding").
"""

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _stretches as stretches
from diagnostics.rules._explained import explained_late
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run


def order_blind(
    kind: str,
    run: Run,
    stretch: stretches.Flat,
    *,
    little: float = 0.05,  # R^2: what a set of tokens tells of most texts is more
) -> Finding | None:
    """In a run that learned next to nothing: a set of tokens may be all that counts."""
    found = explained_late(run)
    if not found.share < little or not _is_blind(run):
        return None
    return Finding(
        kind,
        "order-blind",
        "warning",
        stretch.first_step,
        stretch.ended,
        (),
        f"{_SAME}. The loss {stretch.stood}; the same answer to every input would have {number(found.constant)}.",
        {"loss": found.loss, "loss of a constant answer": found.constant, "R squared": found.share},
        _POSITIONS,
        (Chart("line", "scalars", ("loss", "constant_loss"), "Loss, and that of the same answer to every input"),),
        _FORMULA,
    )


def blind_so_far(kind: str, run: Run, history: signals.Loss, *, left: float = 0.1) -> Finding | None:
    """As information, where so much of the loss is left: what a set of tokens does not tell may be in their order."""
    if not history.end > left * history.start > 0 or not _is_blind(run):
        return None
    return Finding(
        kind,
        "order-blind",
        "info",
        history.first_step,
        None,
        (),
        f"{_SAME}. Of the loss {number(history.end)} is left after {number(history.start)}: if the order matters, that "
        "is where it is missing.",
        {"loss at start": history.start, "loss at end": history.end},
        _POSITIONS,
        (Chart("line", "scalars", ("loss", "constant_loss"), "Loss, and that of the same answer to every input"),),
        _FORMULA,
    )


_SAME = "The answer does not depend on the order of the tokens: it is the same when they change places"
_POSITIONS = (
    "add a table of positions to the embedded tokens before the first layer: a learned one, nn.Embedding(length"
    ", width) of torch.arange(length), or sines and cosines",
    "if the order does not matter, look at one batch as the loss gets it: do targets belong to their inputs?",
)
_FORMULA = r"\operatorname{attention}(P Q, P K, P V) = P \operatorname{attention}(Q, K, V)"


def _is_blind(run: Run) -> bool:
    attends = any(name.endswith("attention") for name in by_layer.activations(run))
    return bool(run.meta["order_blind"]) and attends and not _may_count(run)


def _may_count(run: Run) -> bool:
    """Whether some table began as zeros, as one of positions may: the order was looked at in the first update."""
    steps, names, norms = run.matrix("layers", "weight_norm", copy=False)
    tables = [
        at for at, name in enumerate(names) if len(by_layer.described(run).get(str(name), {}).get("shape", [])) > 1
    ]
    return bool(len(steps)) and bool((norms[0, tables] == 0).any())
