"""What one observed forward tells of the whole run, by the names of its entries in `meta.json` (`run/told.py`)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diagnostics.monitor import losses, whole_loss
from diagnostics.monitor.observe import Observer
from diagnostics.monitor.ordered import unknown
from diagnostics.monitor.sequences import along_batch


def told(observers: Sequence[Observer], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`observers`: of the micro-batches of one update, one at least."""
    return (
        _of_losses(observers)
        | _of_scores(observers)
        | _of_shapes(observers)
        | _of_modules(observers)
        | _of_cuts(observers, tensors)
    )


def _of_losses(observers: Sequence[Observer]) -> dict[str, Any]:
    return losses.told([one.losses for one in observers]) | {
        "targets": _range([each for one in observers for each in one.losses.targets], len(observers)),
        "padding_alone": _first(observers, lambda one: one.masks.padding_alone()),
        "cut_derivative": max(one.derivatives.share() for one in observers),
        "no_second_derivative": all(one.derivatives.no_second() for one in observers),
        "same_states": any(one.next_states.are_the_states() for one in observers),
        "acted_elsewhere": _first(observers, lambda one: one.acted.elsewhere()),
        "guessing": next((each for one in observers for each in whole_loss.guessing(one)), None),
        "unsigned": _first(observers, lambda one: next(iter(whole_loss.unsigned(one)), [])),
    }


def _of_scores(observers: Sequence[Observer]) -> dict[str, Any]:
    """Whether what expects logits gets probabilities, or cosines."""
    given = [bool(each) for one in observers for each in one.losses.probabilities]
    bounds = [each for one in observers for each in one.losses.cosines.given]
    found: dict[str, Any] = {"probabilities": any(given) if given else None}
    if len(bounds) == len(given):  # all that a softmax is taken of
        most, classes = max(((float(most), classes) for most, classes in bounds), default=(math.inf, 0))
        found["score_bound"] = [most, classes] if math.isfinite(most) else []
    return found


def _of_shapes(observers: Sequence[Observer]) -> dict[str, Any]:
    """Calls whose shapes fit, but mean something else."""
    return {
        "scrambled": _first(observers, lambda one: list(next(iter(one.views.scrambled), []))),
        "crossed": _first(observers, lambda one: one.flattened.crossed),
        "other_axis": _first(observers, lambda one: one.axes.told),
        "over_queries": _first(observers, lambda one: one.axes.over_queries),
        "edges_scrambled": _first(observers, lambda one: one.edges_scrambled),
        "edges_of_the_first": _first(observers, lambda one: one.edges_of_the_first),
        "rows_scaled": _first(observers, lambda one: one.rows_scaled),
        "runs_along": [list(each) for each in unknown(observers[0].ends, observers[0].sequences)],
        "along_batch": along_batch(observers[0].ends, observers[0].sequences, observers[0].positions.found()),
    }


def _of_modules(observers: Sequence[Observer]) -> dict[str, Any]:
    return observers[-1].shared_norms.told(observers[-1].modules) | {
        "dropped_output": _first(observers, lambda one: one.dropped.told),
        "dropout": max(one.dropped.most for one in observers),
        "sine_spreads": _first(observers, lambda one: one.periods.spreads),
        "norms_of_one": _names(one.norms_of[1] for one in observers),
        "norms_of_two": _names(one.norms_of[2] for one in observers),
        "softmax_of_one": _names(one.softmax_of_one for one in observers),
        "softmax_astray": _names(one.softmax_astray for one in observers),
    }


def _of_cuts(observers: Sequence[Observer], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors behind a cut of the graph, or a draw, and states that are begun anew."""

    def named(identities: Iterable[int]) -> list[str]:
        held = set(identities)
        return [name for name, tensor in tensors.items() if id(tensor) in held]

    last = observers[-1].cuts.steps
    return {
        "cut_off": named(each for one in observers for each in one.cuts.lost),
        "cancelled": named(each for one in observers for each in one.straight.lost),
        "drawn": named(each for one in observers for each in one.draws.lost),
        "restarted": _first(observers, lambda one: one.restarts.told(tensors)),
        "state_cut": [max(last.values(), default=0), named(last)],
    }


def _range(targets: Sequence[Tensor], batches: int) -> list[float]:
    """One comparison a batch: of several it is not known which is the output's."""
    if len(targets) != batches:
        return []
    low, high = torch.stack(list(targets)).T
    return [each for each in (float(low.min()), float(high.max())) if math.isfinite(each)]


def _first(observers: Iterable[Observer], found: Callable[[Observer], Any]) -> Any:
    """What the first one found, of those that found anything."""
    return next((each for each in map(found, observers) if each), [])


def _names(several: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in several for name in names))
