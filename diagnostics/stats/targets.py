"""Targets of a supervised loss, and what it would be if the same answer were given to everything.

That is what a model reaches that has learned nothing from its inputs: the null model of McFadden's pseudo R^2 (1974),
which is R^2 for a squared error. Of the same batch, so that what differs from batch to batch is in both.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from diagnostics.stats.inputs import Moments, merge, moments

ENOUGH = 300  # targets before it is told: their mean, fitted to them, makes less than 1 / 300 of their variance
A_CLASS = 10  # of each class that there is, on average: with fewer the entropy is too low by a twentieth and more
MOST = 1 << 16  # numbers of one batch that are looked at, in whole rows

Loss = Literal["squared", "bernoulli", "classes"]


@dataclass(frozen=True)
class Targets:
    """What was seen of the targets of one kind of loss; of classes their shares stand for the mean."""

    loss: Loss
    seen: Moments

    def merged(self, other: "Targets") -> "Targets":
        return Targets(self.loss, merge(self.seen, other.seen))

    def like(self, other: "Targets") -> bool:
        return self.loss == other.loss and self.seen.mean.shape == other.seen.mean.shape

    def equal(self, other: "Targets") -> Tensor:
        """Whether two batches hold the same targets, as far as these numbers tell."""
        mine, theirs = (torch.cat([s.count[None], s.mean, s.scatter]) for s in (self.seen, other.seen))
        return (mine == theirs).all()

    def constant_loss(self, whole: "Targets") -> Float[Tensor, ""]:
        """The loss of these targets under the one answer that is best for the whole, of which they are a part.

        NaN where the whole is too small to tell, or all alike.
        """
        n, answer, mean = whole.seen.count, whole.seen.mean, self.seen.mean
        if self.loss == "classes":
            kinds = (answer > 0).sum()
            loss, varies = _cost(mean, answer).sum(), kinds > 1
        else:
            kinds, varies = torch.ones_like(n), (whole.seen.scatter > 0).any()
            if self.loss == "squared":
                loss = (self.seen.scatter / self.seen.count + (mean - answer).square()).mean()
            else:
                loss = (_cost(mean, answer) + _cost(1 - mean, 1 - answer)).mean()
        return torch.where(varies & (n >= ENOUGH) & (n >= A_CLASS * kinds), loss, torch.nan)


def squared(target: Float[Tensor, "*any"]) -> Targets:
    return Targets("squared", moments(_columns(target), crossed=False))


def bernoulli(target: Float[Tensor, "*any"]) -> Targets:
    """Targets between 0 and 1, each with its own output."""
    return Targets("bernoulli", moments(_columns(target), crossed=False))


def classes(target: Integer[Tensor, "*any"], count: int, ignored: int = -100, smoothing: float = 0.0) -> Targets:
    """Numbers of `count` classes; `ignored` ones take no part."""
    flat = _few(target).reshape(-1)
    kept = ((flat != ignored) & (flat >= 0) & (flat < count)).float()
    counts = torch.zeros(count, device=flat.device).scatter_add_(0, flat.long().clamp(0, count - 1), kept)
    total = kept.sum()
    shares = counts / total.clamp(min=1)
    return Targets("classes", Moments(total, (1 - smoothing) * shares + smoothing / count, torch.zeros_like(shares)))


def _columns(target: Float[Tensor, "*any"]) -> Float[Tensor, "rows columns"]:
    """A constant answer has one number for each column of a table, and one in all for images and sequences."""
    x = _few(target)
    return x if x.dim() == 2 else x.reshape(-1, 1)


def _few(target: Tensor) -> Tensor:
    x = target.detach()
    return x[: max(1, MOST * len(x) // x.numel())] if x.dim() and x.numel() > MOST else x


def _cost(share: Tensor, probability: Tensor) -> Tensor:
    return -torch.xlogy(share, probability)
