"""A softmax that makes other numbers compete than those that are to add up to 1.

Source: the definition of the softmax; Vaswani et al. 2017, "Attention Is All You Need", 3.2.1.
"""

from collections.abc import Iterator

from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import shape_of
from diagnostics.run import Run


def other_axis(run: Run) -> Iterator[Finding]:
    """A softmax along another axis than that in which each target is one class."""
    told = [int(each) for each in run.meta["other_axis"]]
    if len(told) < 4:
        return
    along, classes, *shape = told
    yield found(
        "softmax-axis",
        run,
        (
            f"The softmax of the loss is taken along another axis than the classes: of outputs of shape "
            f"{shape_of(shape)} along axis {along}, where the targets that they are compared with are one class of "
            f"{shape[classes]} along axis {classes}. The probabilities of the classes do not add up to 1."
        ),
        (f"take the softmax along the classes: dim={classes}",),
        formula=r"p_c = \frac{e^{z_c}}{\sum_k e^{z_k}} \quad\text{over classes } k",
        severity=unless_it_learns(run, "critical", "warning"),
    )


def over_queries(run: Run) -> Iterator[Finding]:
    shape = [int(each) for each in run.meta["over_queries"]]
    if not shape:
        return
    yield found(
        "softmax-axis",
        run,
        (
            f"The softmax of attention is taken along the queries: its weights, of shape {shape_of(shape)}, add up to "
            f"1 along axis {len(shape) - 2}, but values are summed along axis {len(shape) - 1}. In spite of the mask, "
            "what a place is given depends on those after it: the loss counts on what will not be there later."
        ),
        ("take the softmax along the keys, the last axis: torch.softmax(scores, dim=-1)",),
        formula=r"a_{ij} = \frac{e^{z_{ij}}}{\sum_k e^{z_{ik}}}, \quad h_i = \sum_j a_{ij} v_j",
    )
