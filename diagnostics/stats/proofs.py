"""What numbers read as targets show by themselves: that no other form of loss has such ones."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def are_classes(t: Float[Tensor, "rows classes"], compared: Bool[Tensor, "rows 1"]) -> Bool[Tensor, ""]:
    """Whether each target is one class, of at least two that occur."""
    return ((t.amax(1, keepdim=True) > 0.99) | ~compared).all() & ((t > 0.99).any(0).sum() > 1)


def are_labels(t: Float[Tensor, "*any"], slack: float) -> Bool[Tensor, ""]:
    """Whether all are 0 or 1, and both occur."""
    zero, one = t.abs() <= slack, (t - 1).abs() <= slack
    return (zero | one).all() & zero.any() & one.any()


def are_unsure(g: Float[Tensor, "*any"], slack: float) -> Bool[Tensor, ""]:
    """Whether some gradient has another size than 1 or 0: an absolute error's has no other, nor have sure answers."""
    size = g.abs()
    return ((size > slack) & ((size - 1).abs() > slack)).any()


def are_given(t: Float[Tensor, "*any"], given: Tensor | None, slack: float) -> Bool[Tensor, ""]:
    """Whether the targets are the inputs, which are not all alike, as an autoencoder's are."""
    if given is None or given.numel() != t.numel() or not given.is_floating_point():
        return torch.zeros((), dtype=torch.bool, device=t.device)
    x = given.detach().float().reshape(t.shape)
    size = x.abs().amax()
    return ((t - x).abs() <= slack * size).all() & (x.amax() - x.amin() > slack * size)


def times_given(
    y: Float[Tensor, "*any"], g: Float[Tensor, "*any"], given: Tensor | None, slack: float
) -> Float[Tensor, ""]:
    """What the difference of outputs and inputs is multiplied by, where that makes their gradient; NaN where it does
    not. A squared error's is 2 / M for a mean over M numbers, and as many times that as it is weighed."""
    if given is None or given.numel() != y.numel() or not given.is_floating_point():
        return torch.full((), torch.nan, device=y.device)
    apart = y - given.detach().float().reshape(y.shape)
    times = (g * apart).sum() / apart.square().sum()
    fits = ((g - times * apart).norm() <= slack * g.norm()) & (times > 0)
    return torch.where(fits, times, torch.nan)
