"""How often an eigenvalue is repeated, as far as one random start vector tells."""

import math

import numpy as np

# Prior chance that a converged eigenvalue is repeated: where the last search found copies, there is another start.
REPEATED = 1e-3
MANY = 1000  # multiplicities told apart; a count of so many is known to a few per cent
_M = np.arange(1, MANY + 1)
_PRIOR = np.log(np.r_[1 - REPEATED, REPEATED / (_M[1:] * (_M[1:] - 1.0))])  # of m copies ~ 1 / (m (m - 1)), sum 1
_CHI2 = np.array([math.lgamma(m / 2) for m in _M]) + _M / 2 * math.log(2)


def multiplicities(count: float) -> tuple[float, float]:
    """Mean and variance of the multiplicity, given `count`: the dimension times the squared part of a random unit
    vector in the eigenspace. That is chi-square, with as many degrees of freedom."""
    if count > MANY / 2:
        return count, 2 * count
    x = max(count, 1e-12)
    log = _PRIOR + (_M / 2 - 1) * math.log(x) - x / 2 - _CHI2
    posterior = np.exp(log - log.max())
    posterior /= posterior.sum()
    mean = float(posterior @ _M)
    return mean, float(posterior @ (_M - mean) ** 2)
