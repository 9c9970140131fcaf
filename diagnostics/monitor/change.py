"""What an update adds to the weights."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.distributed import local


def copies(tensors: Iterable[Tensor], optimized: Iterable[bool]) -> list[Tensor | None]:
    """Of all that an update may move: a frozen base can be larger than all that is trained."""
    moved = [(t, t.requires_grad or own) for t, own in zip(tensors, optimized, strict=True)]
    return [local(t).detach().clone() if may else None for t, may in moved]


def differences(before: Sequence[Tensor | None], after: Sequence[Tensor]) -> list[Tensor]:
    """In place: one copy of the weights is all that is held. Zeros without memory where none was kept."""
    kept = [(old, new) for old, new in zip(before, after, strict=True) if old is not None]
    if kept:
        stats.foreach._foreach_neg_([old for old, _ in kept])
        stats.foreach._foreach_add_([old for old, _ in kept], [new for _, new in kept])
    return [zeros(new) if old is None else old for old, new in zip(before, after, strict=True)]


def zeros(like: Tensor) -> Tensor:
    """Of this shape, on this device, without memory; not to be written to."""
    part = local(like)
    return part.new_zeros(()).expand_as(part)


def kept(parts: Iterable[Tensor]) -> list[Tensor]:
    """Copies, but of what takes no memory."""
    return [part if part.numel() and part.stride(0) == 0 else part.clone() for part in parts]
