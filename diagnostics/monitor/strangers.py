"""Parameters that a forward uses, and that were not the model's before it: made there, if they are gone afterwards."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diagnostics.monitor.distributed import is_dtensor


class Stranger(NamedTuple):
    owner: str  # module at work
    parameter: weakref.ref
    shape: torch.Size


def met(owner: str, parameter: nn.Parameter, modules: Mapping[str, nn.Module]) -> Iterator[Stranger]:
    """None where it is a copy of one of the model's, as of a teacher that is copied for each forward."""
    there = (each for module in modules.values() for each in module._parameters.values() if each is not None)
    if not any(_are_equal(each, parameter) for each in there):
        yield Stranger(owner, weakref.ref(parameter), parameter.shape)


def made(strangers: Sequence[Stranger], modules: Mapping[str, nn.Module]) -> list[Stranger]:
    """Without those that a module which was there makes anew and keeps, as a codebook. `modules`: that were there."""
    return [each for each in strangers if each.shape not in _shapes(modules.get(each.owner))]


def gone(strangers: Sequence[Stranger]) -> list[str]:
    """Owners of those that nobody has kept."""
    return list(dict.fromkeys(each.owner for each in strangers if each.parameter() is None))


def _are_equal(a: Tensor, b: Tensor) -> bool:
    comparable = type(a) is type(b) and a.device == b.device and a.layout == b.layout == torch.strided
    return comparable and a.shape == b.shape and not a.is_meta and not is_dtensor(a) and torch.equal(a, b)


def _shapes(module: nn.Module | None) -> set[torch.Size]:
    own = module._parameters.values() if module is not None else ()
    return {each.shape for each in own if each is not None}
