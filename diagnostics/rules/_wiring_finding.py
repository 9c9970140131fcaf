"""What all findings of a loop that does something else have in common: they are critical, and last."""

from diagnostics.rules._finding import Chart, Finding


def found(
    cause: str,
    step: int,
    layers: tuple[str, ...],
    summary: str,
    evidence: dict[str, float],
    remedies: tuple[str, ...],
    formula: str = "",
) -> Finding:
    charts = (
        Chart("line", "scalars", ("loss",), "Loss"),
        Chart("line", "layers", ("grad_norm",), "Gradient norm a tensor", layers=layers, log=True),
    )
    return Finding("wiring", cause, "critical", step, None, layers, summary, evidence, remedies, charts, formula)
