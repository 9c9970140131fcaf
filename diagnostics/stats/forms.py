"""Which errors there are: for each its targets by its gradient, its mean, and what a constant answer would have."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics.stats.inputs import Moments
from diagnostics.stats.targets import Form, Number

_ROUNDED = 1e-7  # what rounding leaves of a probability


def _sum(errors: Number, examples: int) -> Number:
    return errors


def _sum_of_each(errors: Number, examples: int) -> Number:
    """Summed over what an example consists of, and averaged over the examples."""
    return errors / examples


def _sum_of_examples(errors: Number, examples: int) -> Number:
    """Averaged over what an example consists of, and summed over the examples, as in a loop over them."""
    return examples


def _squared(seen: Moments, answer: Tensor) -> Tensor:
    return (seen.scatter / seen.count + (seen.mean - answer).square()).mean()


def _of_classes(seen: Moments, answer: Tensor) -> Tensor:
    return -torch.xlogy(seen.mean, answer).sum()


def _bernoulli(seen: Moments, answer: Tensor) -> Tensor:
    mean, answer = seen.mean.clamp(0, 1), answer.clamp(_ROUNDED, 1 - _ROUNDED)  # of a target that is always 0
    return -(torch.xlogy(mean, answer) + torch.xlogy(1 - mean, 1 - answer)).mean()


def _softmax_targets(z: Tensor, g: Tensor) -> Tensor:
    return z.softmax(1) - g


def _weighted_targets(z: Tensor, g: Tensor) -> Tensor:
    """Of one class each, with a weight: the gradient is the weight times p of all other classes."""
    hot = torch.zeros_like(g).scatter_(1, g.argmin(1, keepdim=True), 1.0)
    others = 1 - hot
    return hot * (g * others).sum(1, keepdim=True) / (z.softmax(1) * others).sum(1, keepdim=True)


def _softmax_error(z: Tensor, t: Tensor) -> Tensor:
    return -(t * z.log_softmax(1)).sum(1).mean()


def _log_error(y: Tensor, t: Tensor) -> Tensor:
    return -(t * y.clamp(min=-1e4)).sum(1).mean()  # a log of 0 counts nothing where the target is 0


def _binary_error(y: Tensor, t: Tensor) -> Tensor:
    """NaN where outputs are no probabilities. Logarithms end where PyTorch's do."""
    return -(t * y.log().clamp(min=-100) + (1 - t) * (1 - y).log().clamp(min=-100)).mean()


def _as_logits(scores: Tensor, sharpness: Number) -> Tensor:
    return sharpness * (2 * scores - 1)


def _as_probabilities(scores: Tensor, sharpness: Number) -> Tensor:
    return _as_logits(scores, sharpness).sigmoid()


def _as_log_probabilities(scores: Tensor, sharpness: Number) -> Tensor:
    return (sharpness * scores).log_softmax(1)


_BINARY_OF_LOGITS = Form(
    "binary cross-entropy of logits",
    lambda z, g: z.sigmoid() - g,
    F.binary_cross_entropy_with_logits,
    _bernoulli,
    of_probabilities=True,
    link=_as_logits,
)
_BINARY = Form(
    "binary cross-entropy of probabilities",
    lambda y, g: y - g * y * (1 - y),
    _binary_error,
    _bernoulli,
    of_probabilities=True,
    link=_as_probabilities,
)
_SQUARED = Form("squared error", lambda y, g: y - g / 2, F.mse_loss, _squared)
_LOGITS, _LOGS = "cross-entropy of logits", "cross-entropy of log-probabilities"
_OF_CLASSES = [
    replace(form, classes=at, link=_as_log_probabilities)
    for form in (
        Form(_LOGITS, _softmax_targets, _softmax_error, _of_classes, vanishes=True),
        Form(f"weighted {_LOGITS}", _weighted_targets, _softmax_error, _of_classes, weighted=True),
        Form(_LOGS, lambda y, g: -g, _log_error, _of_classes, of_logs=True),
    )
    for at in (1, -1)
]
_MEANS = (_SQUARED, *_OF_CLASSES, _BINARY_OF_LOGITS, _BINARY)
_SUMMED = (_SQUARED, *_OF_CLASSES[:2], _BINARY_OF_LOGITS, _BINARY)  # as people sum them
FORMS = (
    *_MEANS,
    *(replace(form, times=times) for times in (_sum, _sum_of_each) for form in _SUMMED),
    *(replace(_SQUARED, times=times, half=True) for times in (_SQUARED.times, _sum, _sum_of_each)),
    *(replace(form, times=_sum_of_examples) for form in (_SQUARED, _BINARY_OF_LOGITS, _BINARY)),
    replace(_SQUARED, name="squared error of inputs, weighed", of_given=True),
)
