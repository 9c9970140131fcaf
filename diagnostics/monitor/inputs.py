"""Means, deviations and correlations of the features the first layer reads."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.likeness import FEWEST
from diagnostics.monitor.outside import Outside

MOST = 1024  # features recorded one by one; wider inputs by channel
CROSSED = 256  # features whose correlation matrix is kept
ENOUGH = 1024  # rows that tell where quartiles lie
# In standard deviations, of the quartiles: normal numbers have 1.35. A fiftieth is hard for a network to see, since
# weights answer to the square of a difference.
CROWDED = 0.02
MOSTLY = 0.9  # of a row's squared length: all others have less than a tenth
DIRECTION = 4  # numbers of a direction in space, or of a rotation
GROWTH = 1.2  # its condition number is computed anew when this much more has been seen


class Inputs:
    """Moments of all inputs seen on measured updates."""

    def __init__(self) -> None:
        self._moments: stats.Moments | None = None
        self._condition: Tensor | None = None
        self._rows = self._computed_at = 0

    def rows(self, x: Tensor) -> tuple[list[str], dict[str, Any]]:
        """Names and columns of table `inputs` after the batch `x`."""
        features = _features(x)
        width = features.shape[1]
        batch = stats.moments(features, crossed=width <= CROSSED)
        if self._moments is None or self._moments.mean.shape != batch.mean.shape:
            self._moments, self._rows, self._computed_at = batch, 0, 0
        else:
            self._moments = stats.merge(self._moments, batch)
        self._rows += len(features)
        columns = {
            "mean": self._moments.mean,
            "std": stats.deviations(self._moments),
            "batch_rms": torch.hypot(batch.mean, stats.deviations(batch)),
            "batch_std": stats.deviations(batch),
            "condition": self._conditions(width).expand(width),
            "nonfinite": stats.nonfinite_share(features),
        }
        return [str(i) for i in range(width)], columns

    def crowded(self, x: Tensor) -> list[float]:
        """Of the features whose quartiles are two numbers: how many, how many of them are crowded by one number far
        away that comes again, as a code does, and how far apart the quartiles of these lie, in standard deviations."""
        if not x.is_floating_point():
            return []
        rows = _features(x)[:ENOUGH]
        halves = stats.middle_halves(rows)
        crowded = [
            at for at in torch.nonzero((halves > 0) & (halves < CROWDED)).flatten().tolist() if _coded(rows[:, at])
        ]
        return [int((halves > 0).sum()), len(crowded), float(halves[crowded].median())] if crowded else []

    def _conditions(self, width: int) -> Tensor:
        assert self._moments is not None
        if width > CROSSED or self._rows <= 2:
            return torch.full((1,), torch.nan, device=self._moments.mean.device)
        if self._condition is None or self._rows >= GROWTH * self._computed_at:
            eigenvalues = torch.linalg.eigvalsh(stats.correlation(self._moments))
            # below rounding an eigenvalue is zero: exactly dependent features have an infinite condition number
            floor = eigenvalues[-1] * width * torch.finfo(eigenvalues.dtype).eps
            smallest = torch.where(eigenvalues[0] > floor, eigenvalues[0], 0)
            self._condition, self._computed_at = (eigenvalues[-1] / smallest).reshape(1), self._rows
        assert self._condition is not None
        return self._condition


def beside(outside: Outside, parameters: Mapping[str, Tensor]) -> Iterator[list]:
    """Of one batch, of what other layers than the first are given: name of the weight, root mean square length, number
    of features, the sum of their sizes, their largest mean and deviation."""
    for name, weight in parameters.items():
        for x in outside.beside.get(id(weight), ()):
            if x.is_floating_point() and not x.is_nested and x.numel():
                found = stats.moments(_features(x), crossed=False)
                deviations = stats.deviations(found)
                sizes = torch.hypot(found.mean, deviations)
                numbers = torch.stack([sizes.norm(), sizes.sum(), found.mean.abs().max(), deviations.max()]).tolist()
                yield [name, numbers[0], len(sizes), *numbers[1:]]


def rows_scaled(given: Iterable[Any]) -> list[float]:
    """Of the first matrix whose rows have length 1, for a single column: their width, which column that is, and its
    share. A few numbers may be a direction, as a quaternion near the identity is."""
    for x in given:
        if isinstance(x, Tensor) and x.is_floating_point() and not x.is_nested and x.dim() == 2 and len(x) >= FEWEST:
            shares = x.detach().float().square().mean(0)
            if len(shares) > DIRECTION and bool(shares.max() > MOSTLY and stats.of_length_one(x.detach(), 1)):
                return [len(shares), int(shares.argmax()), float(shares.max())]
    return []


def _coded(column: Tensor) -> bool:
    """Whether all that lies a deviation or more from the median is one number, twice at least."""
    far = column[(column - column.median()).abs() > column.std()]
    return len(far) > 1 and len(far.unique()) == 1


def _features(x: Tensor) -> Tensor:
    """(rows, features): the last dimension, an image's entries where they are few, else its channels."""
    if x.dim() <= 3:
        return x.reshape(-1, x.shape[-1])
    if x[0].numel() <= MOST:
        return x.reshape(len(x), -1)
    return x.movedim(1, -1).reshape(-1, x.shape[1])
