"""Pictures that many findings show."""

from diagnostics.rules._finding import Chart
from diagnostics.run import Run

LOSS = Chart("line", "scalars", ("loss",), "Loss")
LOG_LOSS = Chart("line", "scalars", ("loss",), "Loss", log=True)
GRADIENT_NORM = Chart("line", "scalars", ("grad_norm",), "Gradient norm", log=True)
CLIPPED = Chart("line", "scalars", ("grad_norm_unclipped", "grad_norm"), "Gradient norm, and after clipping", log=True)
GRADIENTS = Chart("heatmap", "layers", ("grad_norm",), "Gradient norm of each tensor", log=True)
INPUTS = Chart("inputs", "inputs", ("mean", "std"), "Mean and deviation of each input feature")
LOSS_AND_GRADIENT = (LOSS, GRADIENT_NORM)
EXAMPLES = Chart("examples", "examples", ("values",), "Examples of one batch, as the loss got them")


def of_examples(run: Run) -> list[Chart]:
    """Where some were kept."""
    return [EXAMPLES] if len(run.steps("examples")) else []


def where_to_look(run: Run) -> str:
    """At one batch as the loss gets it."""
    if of_examples(run):
        return " The dashboard shows the examples that this run kept"
    return " With diagnostics.watch(..., examples=8) the dashboard shows a few"


def do_they_belong(run: Run) -> str:
    return (
        "look at one batch as the loss gets it: does each target belong to its input, or were the two shuffled, "
        f"sorted or shifted apart?{where_to_look(run)}"
    )
