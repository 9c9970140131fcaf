"""What is known of a loss that is one call of one function."""

from collections.abc import Iterator

from torch import Tensor

from diagnostics.monitor.observe import Observer


def guessing(observer: Observer) -> Iterator[float]:
    """log C, where the whole loss is one mean cross-entropy of C classes."""
    for guess, value in observer.losses.guesses:
        if len(observer.losses.guesses) == 1 and _is_the_loss(observer, value):
            yield guess


def unsigned(observer: Observer) -> Iterator[list]:
    """Name and share of labels 0 of a call that is the whole loss: other terms may do what it leaves undone."""
    for name, share, value in observer.losses.unsigned:
        if share > 0 and _is_the_loss(observer, value):
            yield [name, float(share)]


def _is_the_loss(observer: Observer, value: Tensor) -> bool:
    loss = observer.loss
    if not isinstance(loss, Tensor) or loss.numel() != 1:  # not known where the model itself computes it
        return False
    return abs(float(loss) - float(value)) <= 1e-6 * abs(float(value))
