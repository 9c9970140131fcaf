"""What a call of the model was given, its input first: by place, by name, or as a batch that is a mapping."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.monitor import describe

# What a model is given to compute its loss; a batch may name it before the input, which it is not to be taken for.
TARGETS = {"label", "labels", "target", "targets", "y", "y_true", "ground_truth"}


def in_order(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> list[Any]:
    """By place; then by name, as the model's `forward` lists them, whichever order its caller names them in."""
    if not kwargs:
        return list(args)
    places = {name: place for place, name in enumerate(inspect.signature(describe.unwrap(model).forward).parameters)}
    names = sorted(_targets_last(kwargs), key=lambda name: places.get(name, len(places)))
    return [*args, *(kwargs[name] for name in names)]


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Dense ones of an output or of arguments, as deep as containers go."""
    if isinstance(values, Tensor):
        if values.layout == torch.strided and not values.is_nested and not values.is_meta:
            yield values
    elif isinstance(values, Mapping):
        yield from tensors_in([values[name] for name in _targets_last(values)])
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def _targets_last(named: Mapping) -> list[Any]:
    return sorted(named, key=lambda name: str(name).lower() in TARGETS)
