"""Inputs of which each example was scaled to length 1 by itself, and is one column and next to nothing else."""

from collections.abc import Iterator

from diagnostics.rules._charts import INPUTS
from diagnostics.rules._finding import Finding
from diagnostics.rules._verdict import ROWS_SCALED
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number
from diagnostics.run import Run


def rows_scaled(run: Run) -> Iterator[Finding]:
    if not run.meta["rows_scaled"]:
        return
    columns, at, share = run.meta["rows_scaled"]
    yield found(
        ROWS_SCALED,
        run,
        (
            f"Each example was scaled to length 1 by itself: the {int(columns)} numbers of each have a sum of squares "
            f"of 1, of which column {int(at)} has {number(100 * share)} %. That column is hardly more than the sign of "
            "what it was, and the others are what they were over it."
        ),
        (
            "scale each column, over the examples: (x - x.mean(0)) / x.std(0), or sklearn's StandardScaler; normalize "
            "scales rows",
            "where directions are meant: bring the columns to one scale first",
        ),
        evidence={"columns": float(columns), "share of the largest": float(share)},
        formula=r"\frac{x_{nj}}{\|\mathbf{x}_n\|} \approx \frac{x_{nj}}{|x_{nk}|}",
        severity=unless_it_learns(run, "warning"),
        chart=INPUTS if len(run.table("inputs", ["step"])) else None,  # of tokens beside these there are none
    )
