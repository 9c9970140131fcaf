"""Targets of an error, read off its gradient at the model's output; and what it would be for a constant answer.

The gradient of a mean squared error is 2 (y - t) / M, of a cross-entropy of logits (softmax(z) - t) / N, of their sums
as much without M and N: each tells t, and t tells the error, which proves that it was this one. The loss of the best
answer that is the same for every input is that of McFadden's null model (1974), R^2 for a squared error; of the same
batch, so that what differs from batch to batch is in both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diagnostics.stats import proofs
from diagnostics.stats.inputs import Moments, merge, moments

ENOUGH = 300  # targets before it is told: their mean, fitted to them, makes less than 1 / 300 of their variance
A_CLASS = 10  # of each class that there is, on average: with fewer the entropy is too low by a twentieth and more
REPEATED = 3  # batches with the same targets: they are all the data, and a mean is fitted to no part of it
A_BATCH = 8  # examples, on average, whose targets' variance tells that of all
PLACES = 1 << 16  # in an example, as of an image: the means of more take too much memory for what they tell
UNCOMPARED = 0.05  # of an output's numbers have no gradient: the loss is of chosen ones, as of the actions taken
_SURE = 1e-6  # of its probability are left to all others: what rounding leaves of its gradient
_ALIKE = 1e-6  # of the probabilities of classes: what rounding leaves of their variance
_ROUNDINGS = 10.0  # that a target read off a gradient has gone through, at most

Number = int | float | Float[Tensor, ""]


def _mean(errors: Number, examples: int) -> Number:
    return 1


def _as_they_are(scores: Tensor, sharpness: Number) -> Tensor:
    return scores


@dataclass(frozen=True)
class Form:
    """A kind of error. Its functions take outputs and targets as (rows, columns)."""

    name: str
    targets: Callable[[Tensor, Tensor], Tensor]  # of outputs, and of the mean's gradient times the number of errors
    error: Callable[[Tensor, Tensor], Tensor]  # mean over the rows
    constant: Callable[[Moments, Tensor], Tensor]  # of targets with these moments, for a constant answer
    classes: int | None = None  # dimension of an output that holds the probabilities of one thing
    of_logs: bool = False  # its outputs are their logarithms
    of_probabilities: bool = False  # its targets are probabilities of one thing each
    vanishes: bool = False  # its gradient rounds to 0 where an answer is sure and right
    times: Callable[[Number, int], Number] = _mean  # the mean error, from the numbers of errors and of examples
    half: bool = False  # of that
    weighted: bool = False  # its targets are taken for one class each
    of_given: bool = False  # its targets are what the model was given, and it may be multiplied by any number
    link: Callable[[Tensor, Number], Tensor] = _as_they_are  # outputs by an estimate of targets, and how sure of it

    def read(
        self, output: Float[Tensor, "*any"], gradient: Float[Tensor, "*any"], given: Tensor | None = None
    ) -> "Targets | None":
        """The targets if this is the error, which `Targets.error` has to prove, or they themselves; `None` where the
        shape does not fit. `given`: what the model was given, which may be its target. Numbers that are compared one by
        one are told apart by their place in an example, as pixels are, unless they are too many."""
        slack = rounding(output)
        y, g = output.detach().float(), gradient.detach().float()
        if self.classes is None:
            times = self.factor(y.numel(), len(output))
            if self.of_given:
                times = proofs.times_given(y, g, given, slack) * y.numel() / 2  # NaN where it is no such error
            placed = y.dim() > 2 and y[0].numel() <= PLACES
            y, g = (x.flatten(1) if placed or x.dim() == 2 else x.reshape(-1, 1) for x in (y, g))
            t = self.targets(y, g * (y.numel() / times))
            error, outside = self.error(y, t) * times, None
            alone = proofs.are_given(t, given, slack)
            if self.of_probabilities:
                alone = alone | (proofs.are_labels(t, slack) & proofs.are_unsure(g * (y.numel() / times), slack))
                outside = ((t < -slack) | (t > 1 + slack)).float().mean()
            else:
                error = torch.where(((g == 0) & (y != 0)).float().mean() > UNCOMPARED, torch.nan, error)
            seen = moments(t, crossed=False)
            rounded = _rounded(output, error / times, t) * y.shape[1]
            return Targets(
                self,
                seen,
                error,
                alone,
                None,
                len(output),
                outside,
                times=times,
                placed=placed,
                rounded=rounded,
                values=t,
            )
        if y.dim() < 2 or (self.classes == -1 and y.dim() == 2):
            return None
        y, g = (x.movedim(self.classes, -1).reshape(-1, x.shape[self.classes]) for x in (y, g))
        compared = (g != 0).any(1, keepdim=True)  # the others are ignored, as padding is
        if self.vanishes and self.times is _mean:
            compared = self._with_the_sure(compared, y, g, slack)
        count = compared.sum().clamp(min=1).float()
        times = self.factor(count, len(output))
        t = self.targets(y, g * (count / times))
        t = torch.where(compared, t, 0)
        possible = (t > -slack).all() & ((t.sum() / count - 1).abs() < slack)  # shares, rows weighted or not
        t = t.clamp(min=0) if self.of_logs else torch.where(t > slack, t, 0)  # what a difference from a softmax leaves
        error = self.error(y, t) * (len(t) / count * times)
        values = torch.where(compared, t, torch.nan)
        seen = moments(values, crossed=False)
        hot = proofs.are_classes(t, compared)
        total = _log_total(y, compared) if self.of_logs else None
        sums_to_one = None if total is None else total < slack
        total = None if total is None else total.where(hot, torch.nan)
        alone = hot & possible & (not self.weighted)
        error = torch.where(possible, error, torch.nan)
        rounded = _rounded(output, error / times, t, classes=True)
        return Targets(
            self,
            seen,
            error,
            alone,
            total,
            len(output),
            times=times,
            sums_to_one=sums_to_one,
            rounded=rounded,
            values=values,
        )

    def _with_the_sure(
        self,
        compared: Bool[Tensor, "rows 1"],
        y: Float[Tensor, "rows classes"],
        g: Float[Tensor, "rows classes"],
        slack: float,
    ) -> Bool[Tensor, "rows 1"]:
        """And the rows without a gradient because their answer is sure and right, if a mean over all these makes
        probabilities of the other rows' targets: were they ignored, it is one over fewer, and makes none."""
        all_of_them = compared | (y.softmax(1).amax(1, keepdim=True) > 1 - _SURE)
        t = self.targets(y, g * all_of_them.sum())
        return torch.where((t > -slack).all(), all_of_them, compared)

    def factor(self, errors: Number, examples: int) -> Number:
        """What the mean error is multiplied by."""
        return self.times(errors, examples) * (0.5 if self.half else 1.0)


@dataclass(frozen=True)
class Within:
    """The scatter about each batch's own mean, summed, as it would be about the mean of all."""

    batches: Float[Tensor, ""]
    examples: Float[Tensor, ""]
    scatter: Float[Tensor, ""]


@dataclass(frozen=True)
class Targets:
    """What was seen of the targets of one form of error, and the error of the outputs they were compared with."""

    form: Form
    seen: Moments
    error: Float[Tensor, ""]
    alone: Bool[Tensor, ""]  # whether they prove the form by themselves: no other gradient gives such
    log_total: Float[Tensor, ""] | None = None  # of what should be log-probabilities, NaN where targets are no classes
    examples: int = 0  # in the batch
    outside: Float[Tensor, ""] | None = None  # share that is no probability, where the error takes them for some
    earlier: "Within | None" = None  # of the batches that these were merged from
    times: Number = 1  # the mean error
    placed: bool = False  # each feature is of one place in an example, as a pixel's is
    sums_to_one: Bool[Tensor, ""] | None = None  # what should be probabilities
    rounded: Number = 0.0  # what of the scatter of one row, as it is on average, may be rounding
    values: Float[Tensor, "rows columns"] | None = None  # NaN where nothing is compared; of one batch alone

    def merged(self, other: "Targets") -> "Targets":
        a, b = self.within, other.within
        both = Within(a.batches + b.batches, a.examples + b.examples, a.scatter + b.scatter)
        seen = merge(self.seen, other.seen)
        rounded = torch.maximum(torch.as_tensor(self.rounded), torch.as_tensor(other.rounded))
        return replace(other, seen=seen, log_total=None, outside=None, earlier=both, rounded=rounded)

    def only(self, proven: Bool[Tensor, ""]) -> "Targets":
        """These, or none."""
        seen = (self.seen.count, self.seen.mean, self.seen.scatter)
        kept = Moments(*(torch.where(proven, each, 0) for each in seen))
        rounded = torch.where(proven, torch.as_tensor(self.rounded), 0)
        return replace(self, seen=kept, log_total=None, outside=None, earlier=None, rounded=rounded, values=None)

    def error_of(self, outputs: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
        """That of other outputs for the batch's first examples."""
        assert self.values is not None
        values = self.values[: len(outputs)]
        compared = values.isfinite().all(1).sum().clamp(min=1)
        return self.form.error(outputs, values.nan_to_num()) * (len(values) / compared * self.times)

    def pooled(self) -> "Targets":
        """Those of all places in an example as if they were of one."""
        n, mean = self.seen.count, self.seen.mean
        middle = mean.mean(0, keepdim=True)
        scatter = (self.seen.scatter.sum() + n * (mean - middle).square().sum())[None]
        earlier = self.earlier if self.placed else None
        return replace(self, seen=Moments(n * len(mean), middle, scatter), earlier=earlier, placed=False)

    @property
    def within(self) -> "Within":
        seen = self.pooled().seen if self.placed else self.seen
        n = seen.count
        one = (n > 0).to(n.dtype)
        return self.earlier or Within(one, one * self.examples, seen.scatter.sum() * n / (n - 1).clamp(min=1))

    def spread(self) -> Float[Tensor, ""]:
        """What of the variance of all lies within the batches; NaN of few, of short ones, and where all are alike.

        The rows of one example, as its pixels or points in time, are no batch: `examples` tells.
        """
        seen = self.pooled().seen if self.placed else self.seen
        n, total, within = seen.count, seen.scatter.sum(), self.within
        told = (n >= ENOUGH) & (within.examples >= A_BATCH * within.batches) & (total > n * self.rounded)
        return torch.where(told, within.scatter / total, torch.nan)

    def of_one_class(self) -> Tensor:
        """The number of classes where all targets are of one of them; 0 where not, NaN of few."""
        n, mean = self.seen.count, self.seen.mean
        classes = len(mean) if self.form.classes is not None else 1
        one = (self.seen.scatter.sum() <= _ALIKE * n) & (mean.max() > 0.99)
        told = (n >= ENOUGH) & (classes > 1)
        return torch.where(told, classes * one.to(n.dtype), torch.nan)

    def equal(self, other: "Targets") -> Tensor:
        """Whether two batches hold the same targets, as far as these numbers tell."""
        return self._like(other.seen)

    def _like(self, other: Moments) -> Bool[Tensor, ""]:
        """Whether mean and variance are the same: but for what reading the targets rounds, and for a small part of
        their own size, whatever unit they are in."""
        mine = self.seen.scatter / self.seen.count.clamp(min=1)
        theirs = other.scatter / other.count.clamp(min=1)
        size, rounded = (other.mean.square() + theirs).mean().sqrt(), torch.as_tensor(self.rounded).sqrt()
        of_means, of_squares = 1e-5 * size + rounded, 1e-7 * size**2 + rounded * (2 * size + rounded)
        means = (self.seen.mean - other.mean).abs() <= 1e-4 * other.mean.abs() + of_means
        return means.all() & ((mine - theirs).abs() <= 1e-4 * theirs + of_squares).all()

    def constant_loss(self, whole: "Targets", before: "Targets | None" = None) -> Float[Tensor, ""]:
        """The error of these targets under the one answer that is best for the whole, of which they are a part.

        NaN where the whole is too small to tell, or all alike. Of places it is what was best for each `before`, as
        images have one that is best; what lies beside each other may be of one sequence, whose mean these would fit.
        It is one number for all of them as long as there were few.
        """
        if not self.placed:
            return self._best_for(whole)
        pooled = self._best_for(whole.pooled())
        if before is None or not before.placed or before.seen.mean.shape != self.seen.mean.shape:
            return pooled
        return torch.where(before.seen.count < ENOUGH, pooled, self._best_for(before))

    def _best_for(self, whole: "Targets") -> Float[Tensor, ""]:
        n, answer = whole.seen.count, whole.seen.mean
        kinds = torch.ones_like(n) if self.form.classes is None else (answer * n > 0.5).sum()
        varies = whole.seen.scatter.sum() > n * whole.rounded
        loss = self.form.constant(self.seen, answer) * self.times
        enough = ((n >= ENOUGH) & (n >= A_CLASS * kinds)) | self._is_all_of(whole)
        return torch.where(enough & varies, loss.to(n.dtype), torch.nan)

    def _is_all_of(self, whole: "Targets") -> Bool[Tensor, ""]:
        """Whether the whole is these targets, again and again, as in full-batch training."""
        return self._like(whole.seen) & (whole.within.batches >= REPEATED)


def _rounded(output: Tensor, error: Float[Tensor, ""], t: Tensor, classes: bool = False) -> Float[Tensor, ""]:
    """What rounding may leave of the mean square of targets: they are differences, in float32, of outputs, or the
    probabilities of `classes`, and errors, which are rounded as the outputs are."""
    fine = torch.finfo(torch.float32).eps
    coarse = max(fine, torch.finfo(output.dtype).eps)
    each, own = coarse**2, (coarse if classes else fine) ** 2
    return _ROUNDINGS**2 * (each * error + own * t.square().mean())


def _log_total(y: Float[Tensor, "rows classes"], compared: Bool[Tensor, "rows 1"]) -> Float[Tensor, ""]:
    """Mean size of log sum exp of each row."""
    return y.logsumexp(1, keepdim=True).abs().where(compared, 0).sum() / compared.sum().clamp(min=1)


def rounding(output: Tensor) -> float:
    """What it may leave of a probability that is 0, or of an error, relative to it."""
    return 1e-3 if output.dtype.itemsize >= 4 else 2e-2
