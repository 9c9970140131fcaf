"""What all findings of a loop that does something else have in common: they last, and most are critical."""

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS
from diagnostics.rules._finding import Chart, Finding, Severity
from diagnostics.run import Run


def found(
    cause: str,
    run: Run,
    summary: str,
    remedies: tuple[str, ...],
    *,
    evidence: dict[str, float] | None = None,
    step: int | None = None,
    layers: tuple[str, ...] = (),
    formula: str = "",
    severity: Severity = "critical",
    chart: Chart | None = None,
) -> Finding:
    """`step`: the run's first, if nothing is said. `chart`: beside the loss, in place of the gradients."""
    gradients = Chart("line", "layers", ("grad_norm",), "Gradient norm of each tensor", layers=layers, log=True)
    charts = (LOSS, chart or gradients)
    since = signals.first_step(run) if step is None else step
    return Finding("wiring", cause, severity, since, None, layers, summary, evidence or {}, remedies, charts, formula)


def unless_it_learns(run: Run, severity: Severity, otherwise: Severity = "info") -> Severity:
    return otherwise if signals.has_learned(run) else severity
