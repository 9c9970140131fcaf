"""The families of configurations, one module a heading of the issue; each has `cases()`."""

from collections import Counter
from functools import cache

from ..spec import Case
from . import (
    fixed_curvature,
    healthy,
    healthy_special,
    learning_rate,
    nonfinite,
    plateaux,
    ravines,
    schedules,
    symmetry,
    units,
    wiring,
)

MODULES = (learning_rate, schedules, ravines, plateaux, symmetry, units, nonfinite, wiring, healthy, healthy_special)


@cache
def all_cases() -> tuple[Case, ...]:
    """Every configuration, in a fixed order; no two of them may be the same training under the same label."""
    cases = tuple(case for module in MODULES for case in module.cases())
    cases += tuple(fixed_curvature.again(cases))
    repeated = [key for key, count in Counter(case.key for case in cases).items() if count > 1]
    if repeated:
        raise ValueError(f"configurations listed twice: {', '.join(repeated)}")
    return cases
