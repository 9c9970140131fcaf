"""A recurrent net to which the order of what it reads makes no difference: it may read along the batch."""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import names_of, number
from diagnostics.run import Run

_LOSSES = Chart("line", "scalars", ("ordered_loss", "shuffled_loss"), "Loss with the steps in order, and shuffled")


def order_unused(
    run: Run,
    *,
    looks: int = 3,  # of the later half: of fewer no error is known
    worth: float = 0.02,  # of the loss: what a few more updates bring
    falls: float = 0.1,  # of the loss, in the later half: a net that still learns may come to use the order
    left: float = 0.1,  # of the starting loss: where less is left, each step tells what is asked by itself
) -> Iterator[Finding]:
    if run.meta["along_batch"] or not run.meta["runs_along"]:
        return
    steps, usual, shuffled = run.table("scalars", ["step", "ordered_loss", "shuffled_loss"]).dropna().to_numpy().T
    history = signals.loss(run)
    late = steps >= history.middle_step
    if late.sum() < looks or not (usual[late] > 0).all():
        return
    gains = shuffled[late] / usual[late] - 1
    gain, error = float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5)
    if not gain + 2 * error < worth:
        return
    names = tuple(dict.fromkeys(str(name) or "the model" for name, *_ in run.meta["runs_along"]))
    _, length, beside, *_ = run.meta["runs_along"][0]
    stands = history.late_trend.relative < falls
    one = len(names) == 1
    yield found(
        "order-unused",
        run,
        (
            f"The order in which {names_of(names)} {'reads' if one else 'read'} makes no difference: with the steps "
            f"shuffled the loss is {number(float(np.mean(shuffled[late])))}, and "
            f"{number(float(np.mean(usual[late])))} as they are. {'It runs' if one else 'They run'} along the first "
            f"dimension of the input, which is {int(length)} long, with {int(beside)} sequences side by side. If these "
            f"{int(length)} are the examples of a batch, each is read after another one, and none from its beginning."
        ),
        (
            f"where the batch comes first: make {names[0]} with batch_first=True, or transpose its input and its "
            "output, x.transpose(0, 1)",
            "where time comes first: the steps tell nothing of each other that was learned; look whether the state is "
            "kept, and whether the targets belong to their steps",
        ),
        evidence={"loss over that in order": 1 + gain, "steps": float(length), "sequences": float(beside)},
        layers=names,
        formula=r"\mathcal{L}\big(x_{\pi(1)}, \dots, x_{\pi(T)}\big) = \mathcal{L}(x_1, \dots, x_T)",
        severity="warning" if stands and abs(history.end) > left * abs(history.start) else "info",
        chart=_LOSSES,
    )
