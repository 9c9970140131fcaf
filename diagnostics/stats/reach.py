"""Whether targets lie where an output's last function cannot come."""

import torch
from jaxtyping import Float
from torch import Tensor

from diagnostics.stats.inputs import is_distribution
from diagnostics.stats.targets import Form


def beyond(
    form: Form, output: Float[Tensor, "*any"], gradient: Float[Tensor, "*any"], low: float, high: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Shares of the targets of a squared error, and of the error itself, that lie outside of a range by a tenth of it.

    The error's square is that of its gradient, but for a factor."""
    t = _one_by_one(form, output, gradient)
    margin, error = 0.1 * (high - low), gradient.detach().float().square()
    outside = (t < low - margin) | (t > high + margin)
    return outside.float().mean(), error.where(outside, 0).sum() / error.sum()


def of_no_sum(form: Form, output: Float[Tensor, "*any"], gradient: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """Share of the rows whose targets, compared one by one, sum to less than half or to more than three halves; NaN
    where the outputs' rows do not sum to 1, as those of a softmax along another dimension."""
    off = ((_one_by_one(form, output, gradient).sum(-1) - 1).abs() > 0.5).float().mean()
    return torch.where(is_distribution(output.detach(), -1), off, torch.nan)


def _one_by_one(form: Form, output: Tensor, gradient: Tensor) -> Tensor:
    count = output.numel()
    return form.targets(output.detach().float(), gradient.detach().float() * (count / form.factor(count, len(output))))
