"""A linear model of the same inputs, fitted to what a run has seen: what a network should at least come to.

Ridge regression (Hoerl and Kennard 1970) of the targets on the inputs. Examples come again, epoch after epoch, so that
a fit would know them: each is told by its own numbers to be of one of two halves, and the other half's fit answers.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diagnostics.stats.inputs import Moments, correlation, deviations

WIDEST = 128  # features: wider inputs are averaged in groups of neighbours, and tokens counted by their remainder
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # Fibonacci hashing (Knuth, volume 3, 6.4): 2^64 over the golden ratio


def features(x: Tensor) -> Float[Tensor, "rows features"]:
    """What a linear model is given of a batch (rows, ...) of numbers, or (rows, places) of tokens."""
    if x.dim() == 2 and not (x.is_floating_point() or x.is_complex()):
        counts = torch.zeros(len(x), WIDEST, device=x.device)
        return counts.scatter_add_(1, x.long() % WIDEST, torch.ones(x.shape, device=x.device))
    rows = (torch.view_as_real(x) if x.is_complex() else x).detach().reshape(len(x), -1).float()
    return rows if rows.shape[1] <= WIDEST else F.adaptive_avg_pool1d(rows[:, None], WIDEST)[:, 0]


def halves(rows: Float[Tensor, "rows features"]) -> Bool[Tensor, " rows"]:
    """Which of two halves each example belongs to, by its numbers alone."""
    bits = rows.contiguous().view(torch.int32).long()
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device) * _ODD | 1
    mixed = (bits * places).sum(1)
    mixed = (mixed ^ (mixed >> 29)) * _ODD
    return (mixed >> 40) & 1 == 1


def fitted(seen: Moments, width: int) -> Float[Tensor, "features targets"]:
    """Coefficients by the moments of `width` features and the targets behind them, all standardized. The penalty is the
    number of features: it expects as much signal as noise."""
    both, spread = correlation(seen), deviations(seen)
    inputs, targets = spread[:width, None], spread[None, width:]
    penalty = width / seen.count.clamp(min=1) * torch.eye(width, dtype=both.dtype, device=both.device)
    solved, _ = torch.linalg.solve_ex(both[:width, :width] + penalty, both[:width, width:])  # never waits
    return torch.where(inputs > 0, solved * targets / inputs.clamp(min=torch.finfo(both.dtype).tiny), 0)


def predicted(
    seen: Moments, coefficients: Float[Tensor, "features targets"], rows: Float[Tensor, "rows features"]
) -> Float[Tensor, "rows targets"]:
    width = len(coefficients)
    return (seen.mean[width:] + (rows - seen.mean[:width]) @ coefficients).float()
