"""Confidence intervals for rates of a few dozen configurations."""

import math


def interval(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval, 95 % by default (Wilson 1927): right where the normal one fails, near 0 and 1.

    `successes` may be fractional: a configuration counts with the share of its seeds. Without trials nothing is known.
    """
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
