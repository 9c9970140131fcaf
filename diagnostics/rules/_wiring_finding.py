"""What all findings of a loop that does something else have in common: they last, and most are critical."""

from diagnostics.rules._finding import Chart, Finding, Severity


def found(
    cause: str,
    step: int,
    layers: tuple[str, ...],
    summary: str,
    evidence: dict[str, float],
    remedies: tuple[str, ...],
    formula: str = "",
    severity: Severity = "critical",
) -> Finding:
    charts = (
        Chart("line", "scalars", ("loss",), "Loss"),
        Chart("line", "layers", ("grad_norm",), "Gradient norm a tensor", layers=layers, log=True),
    )
    return Finding("wiring", cause, severity, step, None, layers, summary, evidence, remedies, charts, formula)
