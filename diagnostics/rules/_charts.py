"""Pictures that many findings show."""

from diagnostics.rules._finding import Chart

LOSS = Chart("line", "scalars", ("loss",), "Loss")
LOG_LOSS = Chart("line", "scalars", ("loss",), "Loss", log=True)
GRADIENT_NORM = Chart("line", "scalars", ("grad_norm",), "Gradient norm", log=True)
GRADIENTS = Chart("heatmap", "layers", ("grad_norm",), "Gradient norm of each tensor", log=True)
LOSS_AND_GRADIENT = (LOSS, GRADIENT_NORM)
