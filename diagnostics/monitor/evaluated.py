"""A closure that the optimizer evaluates within its step, and where the gradient of its update is to be found."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diagnostics.monitor.left import gradient_versions
from diagnostics.monitor.sentinel import Sentinel
from diagnostics.monitor.update import Update


def watched(
    closure: Callable[[], Any],
    update: Update,
    tensors: Sequence[Tensor],
    read: Callable[[Update], None],
    sentinel: Sentinel,
    guarded: Callable[[str], Any],
    carries: bool,
) -> Callable[[], Any]:
    """The closure, after whose first evaluation the gradient at the old weights is there, as in LBFGS.

    A gradient of before the step that the optimizer has removed by then was the update's (SAM's); else the closure adds
    to it, as where micro-batches are accumulated. Where the optimizer calls the backward itself, or has written over
    what there was, it is there at the next evaluation, or at the end. `carries`: what the second evaluation finds of a
    gradient should have been zeroed.
    """
    evaluations, wiped = 0, False
    before = [tensor.grad for tensor in tensors] if sentinel.passes else []
    versions = gradient_versions(tensors) if before else []

    def evaluate() -> Any:
        nonlocal evaluations, wiped
        evaluations += 1
        with guarded("gradients"):
            if evaluations == 1 and before:
                removed = any(tensor.grad is not gradient for tensor, gradient in zip(tensors, before, strict=True))
                wiped = not removed and gradient_versions(tensors) != versions
                if removed:
                    _read_removed(update, tensors, before, read)
            if evaluations > 1:
                _read_what_is_there(update, tensors, read)
            if evaluations > 1 or "grad_norm" in update.values:  # what comes now is no part of it
                sentinel.reset()
        loss = closure()
        with guarded("gradients"):
            if evaluations == 1 and not wiped:
                _read_what_is_there(update, tensors, read)
            elif evaluations == 2 and carries:  # others may want the sum
                update.values["carried_grad_norm"] = sentinel.carried
        return loss

    return evaluate


def _read_removed(
    update: Update, tensors: Sequence[Tensor], before: Sequence[Tensor | None], read: Callable[[Update], None]
) -> None:
    now = [tensor.grad for tensor in tensors]
    try:
        for tensor, gradient in zip(tensors, before, strict=True):
            tensor.grad = gradient
        read(update)
    finally:
        for tensor, gradient in zip(tensors, now, strict=True):
            tensor.grad = gradient


def _read_what_is_there(update: Update, tensors: Sequence[Tensor], read: Callable[[Update], None]) -> None:
    """Unless it was read, or there is none."""
    if "grad_norm" not in update.values and any(tensor.grad is not None for tensor in tensors):
        read(update)
