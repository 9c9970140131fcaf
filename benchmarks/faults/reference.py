"""A detector made of thresholds published for debugging tools, scored beside ours on the same trainings.

Thresholds (as in AutoTrainer, UMLAUT and
SageMaker Debugger): dead ReLU - 70 % zero entries; saturated - input outside +-5 for half the entries; loss not
decreasing - less than 0.1 % in 10 steps; vanishing - mean absolute gradient below 1e-7; exploding - NaN, or first over
last layer's gradient above 70; update to weight ratio outside 1e-4..1e-1. It looks every ten updates, from the
activations, gradients and weights themselves, and keeps the first update at which each alarm goes off.
"""

import math

import torch
from torch import Tensor, nn

from .train import Training

EVERY = 10

# Kinds of the design's section 3 that an alarm of the reference may stand for.
MEANS = {
    "dead": ("dead-units",),
    "saturated": ("saturated-units",),
    "not-decreasing": ("plateau", "saddle-point", "zero-gradient", "ravine", "lr-oscillation"),
    "vanishing": ("plateau", "zero-gradient", "saddle-point"),
    "exploding": ("lr-unstable", "non-finite", "cliff"),
    "update-small": ("lr-too-small",),
    "update-large": ("lr-unstable", "lr-oscillation"),
}


class Reference:
    """An observer for `train.unwatched`; `alarms`: name -> first update."""

    def __init__(self) -> None:
        self.alarms: dict[str, int] = {}
        self.losses: list[float] = []
        self.before: list[Tensor] = []

    def _alarm(self, name: str, step: int, on: bool) -> None:
        if on:
            self.alarms.setdefault(name, step)

    def __call__(self, training: Training, step: int, loss: Tensor, closure: object) -> None:
        self.losses.append(float(loss))
        self._alarm("exploding", step, not math.isfinite(self.losses[-1]))
        if step > EVERY:
            self._alarm("not-decreasing", step, self.losses[-1] > 0.999 * self.losses[-1 - EVERY])
        weights = [p for p in training.model.parameters() if p.requires_grad]
        if step % EVERY == 0:
            self._gradients(step, weights)
            self._updates(step, weights)
            self._activations(training, step)
        self.before = [p.detach().clone() for p in weights] if step % EVERY == EVERY - 1 else []

    def _gradients(self, step: int, weights: list[Tensor]) -> None:
        means = [p.grad.abs().mean().item() for p in weights if p.grad is not None]
        self._alarm("vanishing", step, bool(means) and min(means) < 1e-7)
        self._alarm("exploding", step, any(not math.isfinite(m) for m in means))
        if len(means) > 1:
            self._alarm("exploding", step, means[0] > 70 * means[-1] > 0)

    def _updates(self, step: int, weights: list[Tensor]) -> None:
        for old, new in zip(self.before, weights, strict=True):
            ratio = ((new.detach() - old).std() / old.std()).item() if old.numel() > 1 and old.std() > 0 else math.nan
            self._alarm("update-small", step, ratio < 1e-4)
            self._alarm("update-large", step, ratio > 1e-1)

    def _activations(self, training: Training, step: int) -> None:
        def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.ReLU):
                self._alarm("dead", step, (output == 0).float().mean().item() > 0.7)
            else:
                self._alarm("saturated", step, (args[0].abs() > 5).float().mean().item() > 0.5)

        watched = [m for m in training.model.modules() if isinstance(m, nn.ReLU | nn.Tanh | nn.Sigmoid)]
        handles = [m.register_forward_hook(look) for m in watched]
        with torch.no_grad():
            training.model.eval()(training.x[:128])
        training.model.train()
        for handle in handles:
            handle.remove()
