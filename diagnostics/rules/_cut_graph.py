"""Tensors that no gradient reaches, and whether a cut of the graph explains them."""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.run import Run


def erased(run: Run) -> bool:
    """Every update had its backward pass: the gradients were there once."""
    _, passes = signals.column(run, "micro_batches")
    return len(passes) > 0 and bool((passes >= 1).all())


def without_gradient(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps (T,), names (L,) and where a tensor had no gradient (T, L). Empty if all had one at first: then nothing is
    cut off, and of a long run a column less is read."""
    steps, names, norms = run.matrix("layers", "grad_norm", copy=False)
    if len(steps) < 3 or (norms[0] > 0).all():
        return steps[:0], names, norms[:0]
    return run.matrix("layers", "grad_missing", copy=False)


def untouched(run: Run, missing: np.ndarray) -> np.ndarray:
    """(L,) which never had a gradient when it was looked for, nor changed in between: what is trained in turns does,
    and so do averages and copies."""
    return (missing == 1).all(0) & (np.ptp(run.matrix("layers", "weight_norm")[2], axis=0) == 0)


def detached(run: Run, names: np.ndarray, missing: np.ndarray) -> tuple[str, ...]:
    """Trainable tensors without any gradient whose layer's output was detached on its way into another layer."""
    held = {each["name"] for each in run.meta.get("layers") or [] if each.get("optimized") and not each.get("frozen")}
    cut = held & set(run.meta.get("cut_off") or [])
    return tuple(
        str(name) for name, absent in zip(names, untouched(run, missing), strict=True) if absent and name in cut
    )


def before(run: Run, names: np.ndarray, missing: np.ndarray) -> tuple[str, ...]:
    """Trainable tensors without any gradient, if they are the first ones of the model and no others.

    An expert that no input reaches, or a head that is not used, lies beside the way from input to loss, not before it,
    and so does what took no part in the forward.
    """
    beside = {each["name"] for each in run.meta.get("layers") or [] if each.get("frozen") or not each.get("optimized")}
    beside |= set(run.meta.get("idle") or [])
    at = [index for index, name in enumerate(names) if str(name) not in beside]
    if not len(missing) or not at:
        return ()
    absent = untouched(run, missing)[at]
    count = int(absent.sum())
    if not 0 < count < len(at) or not absent[:count].all():
        return ()
    return tuple(str(names[index]) for index in at[:count])
