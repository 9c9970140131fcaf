"""The curves that every run is shown with, on its page and in its report. No streamlit here."""

from diagnostics.rules import Chart

CURVES = (
    Chart("line", "scalars", ("loss",), "Loss", log=True),
    Chart("line", "scalars", ("grad_norm",), "Gradient norm", log=True),
    Chart("line", "scalars", ("lr",), "Learning rate"),
    Chart("stability", "curvature", ("stability",), "Stability ratio s: below 1 is stable for this optimizer"),
)
