"""Data that the last function of a generator keeps it from.

Source: Radford et al. 2016 (DCGAN), 4: data are scaled to the range of the generator's tanh, and by nothing else.
"""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._out_of_reach import RANGES
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

_SCALED = {"tanh": "x = 2 * (x - low) / (high - low) - 1", "sigmoid": "x = (x - low) / (high - low)"}


def beyond_generator(
    run: Run,
    *,
    share: float = 0.25,  # of data and results together, of which at least half are results: of half of the data
    measured: int = 3,  # records: one batch may be the only one of its kind
) -> Iterator[Finding]:
    """By what a discriminator is given beside the results of a generator that learns from its answers."""
    function = str(run.meta["generated_by"])
    steps, shares = signals.column(run, "ungenerated_share")
    if function not in _SCALED or len(shares) < measured or not signals.median(shares) >= share:
        return
    part, (least, most) = signals.median(shares), RANGES[function]
    yield found(
        "beyond-generator",
        run,
        (
            f"The generator ends in a {function}, which gives numbers between {number(least)} and {number(most)}, but "
            f"{number(100 * part)} % of what this network is given, data and generated together, lies well outside: "
            "these data it knows at sight, whatever the generator learns, and the generator is driven to the ends of "
            "its range."
        ),
        (
            f"bring the data into that range: {_SCALED[function]}, and the results back",
            f"or leave the {function} at the generator's end out",
        ),
        evidence={"share of examples out of reach": part},
        step=int(steps[0]),
        formula=rf"x \notin [{tex(least)}, {tex(most)}] \ni G(z) \;\Rightarrow\; p(x \text{{ is real}}) = 1",
        severity="warning",
        chart=Chart("line", "scalars", ("ungenerated_share",), "Share of examples that the generator cannot make"),
    )
