"""Sines that turn many times between two examples that are alike.

Source: Sitzmann et al. 2020, "Implicit Neural Representations with Periodic Activation Functions", section 3.2.
"""

from collections.abc import Iterator
from math import pi

from diagnostics.rules._charts import GRADIENT_NORM
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import counted, number, tex
from diagnostics.run import Run


def many_periods(
    run: Run,
    *,
    most: float = 2 * pi,  # two thirds of the examples are within one deviation: they then span two whole periods
) -> Iterator[Finding]:
    """At the start, where the angles of a layer are as the initialization draws them. However low the loss becomes:
    what is seen is stored, and what lies between is noise."""
    spreads = [spread for spread in run.meta["sine_spreads"] if spread >= most]
    if not spreads:
        return
    largest = max(spreads)
    yield found(
        "many-periods",
        run,
        (
            f"The sines of {counted(len(spreads), 'hidden layer')} begin with angles spread over many periods: their "
            f"standard deviation is {number(largest)} radians, where a whole turn is 6.28. Two examples that are "
            "nearly alike get answers that have nothing in common, and what is learned of some says nothing of those "
            "between."
        ),
        (
            "draw the weights of a hidden layer of n inputs, whose sine is sin(omega * z), from "
            "U(-sqrt(6 / n) / omega, sqrt(6 / n) / omega): then the deviation is 1",
            "or leave omega to the first layer, which chooses the frequencies: sin(z) in the others",
        ),
        evidence={"largest deviation of an angle, in radians": largest},
        formula=rf"\sin(\omega z), \qquad \omega\,\sigma_z = {tex(largest)} \gg 1",
        severity="warning",
        chart=GRADIENT_NORM,
    )
