"""What the loss of each measured batch would be under a linear model of the same inputs, fitted to the batches before.

It proves what the inputs tell of the targets: where it does better than the network, the data are not to blame.
"""

import torch
from torch import Tensor

from diagnostics import stats

ROWS = 4096  # of a batch: more cost memory, and tell no more
TARGETS = 64  # numbers of an answer: an image's are not asked of a linear model
GROWTH = 1.2  # it is fitted anew when this much more has been seen
ENOUGH = 20  # examples a feature: what a fit of so many loses to its own noise is a twentieth of what is left
SHARPNESS = (1.0, 3.0, 10.0, 30.0)  # of the scores that become logits


class Baseline:
    """Two fits, each of which has never seen the other's examples."""

    def __init__(self) -> None:
        self._seen: list[stats.Moments] = []
        self._fits: list[tuple[stats.Moments, Tensor]] = []  # and what they were fitted to
        self._rows = self._fitted_at = 0
        self._losses = torch.zeros(len(SHARPNESS))  # so far, of each sharpness: the best one is used

    def loss(self, rows: Tensor, targets: stats.Targets, known: Tensor) -> Tensor | None:
        """That of a batch; which is learned from afterwards, if its targets are `known`."""
        values = targets.values
        if values is None or len(rows) != len(values) or values.shape[1] > TARGETS:
            return None
        rows, values = rows[:ROWS].to(values.device), values[:ROWS]
        if self._seen and len(self._seen[0].mean) != rows.shape[1] + values.shape[1]:
            self.__init__()  # inputs or targets of another width: it begins anew
        first, learns = stats.halves(rows), self._rows < 2 * ENOUGH * rows.shape[1]
        found = self._of(rows, first, targets, learns) if self._fits else None
        if learns:
            self._learn(rows, values, [first & known, ~first & known])
        return found

    def _of(self, rows: Tensor, first: Tensor, targets: stats.Targets, learns: bool) -> Tensor:
        one, other = (stats.predicted(*fit, rows) for fit in self._fits)
        scores, best = torch.where(first[:, None], other, one), self._losses.argmin()
        if learns:
            link = targets.form.link
            losses = torch.stack([targets.error_of(link(scores, sharpness)) for sharpness in SHARPNESS])
            self._losses = losses.nan_to_num(0) + self._losses.to(losses.device)
            return losses[best]
        sharpness = torch.tensor(SHARPNESS, device=scores.device)[best]
        return targets.error_of(targets.form.link(scores, sharpness))

    def _learn(self, rows: Tensor, values: Tensor, halves: list[Tensor]) -> None:
        joint = torch.cat([rows, values], 1)
        batch = [stats.moments(torch.where(half[:, None], joint, torch.nan), crossed=True) for half in halves]
        self._seen = [stats.merge(a, b) for a, b in zip(self._seen, batch, strict=True)] if self._seen else batch
        self._rows += len(rows)
        if self._rows >= GROWTH * self._fitted_at:
            self._fits = [(seen, stats.fitted(seen, rows.shape[1])) for seen in self._seen]
            self._fitted_at = self._rows


def given(x: Tensor, output: Tensor) -> Tensor | None:
    """What a linear model is given, where there is one short answer an example. One as long as the example may be its
    reconstruction, which a bottleneck is meant to spoil."""
    plain = x.layout == torch.strided and not x.is_nested and x.dim() > 0 and x.numel() > 0
    short = output.dim() <= 2 and output.numel() <= TARGETS * len(output)
    rebuilt = x.numel() == output.numel() > len(x)
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():  # tokens are counted in any order
        return None
    return stats.features(x) if plain and short and len(x) == len(output) and not rebuilt else None
