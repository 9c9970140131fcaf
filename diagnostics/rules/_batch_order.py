"""A running sum over the examples of a batch, as of a partial likelihood, where these lie in no order.

Source: Cox 1975, "Partial likelihood"; Katzman et al. 2018 (DeepSurv).
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import explained_late
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

_ORDER = Chart("line", "scalars", ("running_order",), "Rank correlation of an answer with its place in the batch")


def batch_order(
    run: Run,
    *,
    looks: int = 5,  # of the later half
    none: float = 0.5,  # of the root of the share explained: a rank correlation r lowers a partial likelihood of a few
    # nats by about r^2, so that in ordered batches it is more than the root
) -> Iterator[Finding]:
    """Once something is learned: what was learned of ordered examples shows in their places. The steps of a sequence
    lie in no order of their own either, but resemble their neighbours."""
    table = run.table("scalars", ["step", "running_order", "running_likeness"]).dropna()
    late = table.loc[table["step"] >= signals.loss(run).middle_step]
    if len(late) < looks:
        return
    explained = explained_late(run)
    surely = max(explained.share - 2 * explained.error, 0.0)
    both = late[["running_order", "running_likeness"]].to_numpy(dtype=float)
    means, errors = both.mean(0), both.std(0, ddof=1) / len(both) ** 0.5
    if not (np.abs(means) + 2 * errors < none * surely**0.5).all():
        return
    yield found(
        "batch-order",
        run,
        (
            "The loss adds up along the batch, and the examples of a batch lie in no order: the rank correlation of "
            f"their answers with their places is {number(means[0])} ± {number(errors[0])}. A sum over all that come "
            "before one in a batch that was shuffled is over others by chance."
        ),
        (
            "sort each batch before the sum, as a partial likelihood by falling times: order = "
            "times.argsort(descending=True), and index answers and events by it; a data set that is sorted is "
            "shuffled again by its loader",
            "or write the sets out: at_risk = times[None] >= times[:, None], and a logsumexp over each row's",
        ),
        evidence={"rank correlation with the place": float(means[0]), "its standard error": float(errors[0])},
        formula=r"\sum_{i:\,\delta_i = 1} \Big( h_i - \log \textstyle\sum_{j:\,t_j \ge t_i} e^{h_j} \Big)",
        severity="warning",
        chart=_ORDER,
    )
