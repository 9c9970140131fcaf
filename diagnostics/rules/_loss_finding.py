"""What all findings of a loss that is given the wrong thing have in common: they last, and hold the loss up."""

from diagnostics.rules._charts import LOSS_AND_GRADIENT
from diagnostics.rules._finding import Finding


def warned(
    kind: str,
    cause: str,
    first_step: int,
    summary: str,
    evidence: dict[str, float],
    remedies: tuple[str, ...],
    formula: str,
) -> Finding:
    return Finding(
        kind, cause, "warning", first_step, None, (), summary, evidence, remedies, LOSS_AND_GRADIENT, formula
    )
