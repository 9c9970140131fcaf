"""Tensors that no gradient reaches, and whether a cut of the graph explains them."""

import numpy as np
import pandas as pd

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.run import Run


def no_graph(run: Run) -> pd.DataFrame:
    """The event that the loss had none, told at the first update; not where a gradient came all the same."""
    told = signals.events(run, "no-graph")
    return told.iloc[:0] if (signals.column(run, "grad_norm")[1] > 0).any() else told


def erased(run: Run) -> bool:
    """Every update had its backward pass: the gradients were there once."""
    _, passes = signals.column(run, "micro_batches")
    return len(passes) > 0 and bool((passes >= 1).all())


def erased_always(run: Run, *, least: int = 20) -> bool:
    """In every update, as is known without a look at the layers: a norm after the backward pass, 0 before the step."""
    (_, left), (_, norms) = (signals.column(run, name) for name in ("grad_norm", "grad_norm_unclipped"))
    whole = len(norms) == len(left) >= least
    return whole and bool((left == 0).all()) and bool((norms > 0).all()) and erased(run)


def without_gradient(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps (T,), names (L,) and where a tensor had no gradient (T, L). Empty if all had one at first: then nothing is
    cut off, and of a long run a column less is read."""
    steps, names, norms = run.matrix("layers", "grad_norm", copy=False)
    if len(steps) < 3 or (norms[0] > 0).all():
        return steps[:0], names, norms[:0]
    return run.matrix("layers", "grad_missing", copy=False)


def detached(run: Run, steps: np.ndarray, names: np.ndarray, missing: np.ndarray) -> tuple[str, ...]:
    """Trainable tensors without any gradient that stay as they are, and whose layer's output was detached on its way
    into another layer."""
    return told_by_closure(run, "cut_off", steps, names, missing, updates=0)


def told_by_closure(
    run: Run, entry: str, steps: np.ndarray, names: np.ndarray, missing: np.ndarray, *, updates: int = 10
) -> tuple[str, ...]:
    """Trainable tensors without any gradient that stay as they are, though the closure's loss has one for them
    ("withheld"), or depends on them without ("by_value").

    `updates`: from the first measurement to the last; a layer that is left out at random, of which the closure's call
    made use, gets its turn by then, and moves.
    """
    if not len(steps) or steps[-1] - steps[0] < updates:
        return ()
    told = set(run.meta.get(entry) or []) - _not_trained(run)
    absent = (missing == 1).all(0) & still(run)
    return tuple(str(name) for name in names[absent] if str(name) in told)


def before(run: Run, names: np.ndarray, missing: np.ndarray) -> tuple[str, ...]:
    """Trainable tensors without any gradient that stay as they are, if they are the first ones of the model and no
    others are without, or all of its matrices: what gets a gradient then is a scale or a bias behind them.

    An expert that no input reaches, or a head that is not used, lies beside the way from input to loss, not before it,
    and so does what took no part in the forward, or what nothing depends on.
    """
    beside = _not_trained(run) | set(run.meta["idle"]) | set(run.meta["unused"])
    at = [index for index, name in enumerate(names) if str(name) not in beside]
    absent = (missing[:, at] == 1).all(0)
    count, stays = int(absent.sum()), absent & still(run)[at]
    matrices = np.array([str(names[index]) in by_layer.matrices(run) for index in at])
    every = bool(matrices.any()) and bool(stays[matrices].all())
    if not 0 < count < len(at) or not (stays[:count].all() or every):
        return ()
    return tuple(str(names[index]) for index, gone in zip(at, stays, strict=True) if gone)


def still(run: Run) -> np.ndarray:
    """(L,) whose norm never changed: what is trained in turns does between the updates that were measured, and so do
    averages and copies."""
    return np.ptp(run.matrix("layers", "weight_norm")[2], axis=0) == 0


def _not_trained(run: Run) -> set[str]:
    layers = by_layer.described(run).items()
    return {name for name, each in layers if each.get("frozen") or not each.get("optimized")}
