"""Loss functions by name, some of them wrong on purpose: counting mistakes, or undefined where they are used."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def flat(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and classes of a sequence model as one long batch."""
    return output.flatten(0, -2) if output.dim() > 2 else output, target.flatten() if output.dim() > 2 else target


def log_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy written by hand with a logarithm of probabilities that may be zero."""
    return -torch.log(torch.softmax(output, -1).gather(1, target[:, None])).mean()


def exponential_softmax(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy written by hand with exp() of the logits, which overflows float32 beyond 88."""
    powers = torch.exp(output)
    return -torch.log(powers.gather(1, target[:, None]) / powers.sum(1, keepdim=True)).mean()


def rounded(output: Tensor, target: Tensor) -> Tensor:
    """The 0-1 loss: the share of rounded probabilities that are wrong."""
    return (torch.round(torch.sigmoid(output)) - target).abs().mean()


def weighted(ratio: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared error whose outputs weigh between 1 and 1 / ratio."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        weights = torch.logspace(0, -math.log10(ratio), output.shape[1], dtype=output.dtype)
        return (weights * (output - target).square()).mean()

    return loss


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda output, target: F.cross_entropy(*flat(output, target)),
    "mse": F.mse_loss,
    "mse_sigmoid": lambda output, target: F.mse_loss(torch.sigmoid(output), target),
    "bce": F.binary_cross_entropy_with_logits,
    "softmax_cross_entropy": lambda output, target: F.cross_entropy(torch.softmax(output, -1), target),
    "bce_probability": F.binary_cross_entropy,
    "nll_probability": lambda output, target: -torch.log(output.gather(1, target[:, None]) + 1e-8).mean(),
    **{f"mse_weighted_{ratio}": weighted(ratio) for ratio in (30, 100, 300, 1000)},
    "zero_one_round": rounded,
    "zero_one_sign": lambda output, target: (1 - torch.sign(output) * (2 * target - 1)).mean() / 2,
    "zero_one_step": lambda output, target: F.mse_loss(torch.ceil(torch.sigmoid(output) - 0.5), target),
    "zero_one_floor": lambda output, target: (torch.floor(torch.sigmoid(output) + 0.5) - target).square().mean(),
    "log_probability": log_likelihood,
    "exponential_softmax": exponential_softmax,
    "log_error": lambda output, target: (torch.log(output) - torch.log(target + 1e-3)).square().mean(),
    "sqrt_error": lambda output, target: (torch.sqrt(output) - torch.sqrt(target)).square().mean(),
    "relative_error": lambda output, target: ((output - target) / target).square().mean(),
    "value": lambda output, target: output,
    "value_square": lambda output, target: output.square(),
}
