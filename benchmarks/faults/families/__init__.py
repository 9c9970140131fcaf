"""The families of configurations, one module a heading of the issue; each has `cases()`."""

from functools import cache

from ..spec import Case
from . import healthy, healthy_special, learning_rate, nonfinite, plateaux, ravines, schedules, symmetry, units, wiring

MODULES = (learning_rate, schedules, ravines, plateaux, symmetry, units, nonfinite, wiring, healthy, healthy_special)


@cache
def all_cases() -> tuple[Case, ...]:
    """Every configuration, in a fixed order; no two of them may be the same training under the same label."""
    cases = tuple(case for module in MODULES for case in module.cases())
    repeated = {case.key for case in cases if sum(other.key == case.key for other in cases) > 1}
    if repeated:
        raise ValueError(f"configurations listed twice: {', '.join(sorted(repeated))}")
    return cases
