"""Random generators of the closure's own, put back as the global ones are.

Found where code names them: cells, arguments and globals of the closure and of the functions it calls, attributes of
the objects it holds, and attributes of modules. One inside of a container that is large or nested deeper is not.
"""

import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_TYPES = frozenset(_KINDS)
_CLOSED = (Tensor, np.ndarray, ModuleType, type, str, bytes, int, float, type(None))  # nothing to find in them
_EMPTY = CellType()  # equal to those that nothing was assigned to yet
_LIBRARIES = ("torch", "numpy")
DEPTH, OBJECTS, LENGTH = 5, 500, 32


class Generators:
    """Those found so far, each with what puts its state back."""

    def __init__(self, *found: Any) -> None:
        self.held: list[Any] = []
        self._back: dict[int, Callable[[], Any]] = {}
        for each in found:
            self.keep(each)

    def keep(self, generator: Any) -> None:
        if isinstance(generator, random.SystemRandom):  # the machine's own, which has no state
            return
        if id(generator) not in self._back:
            self.held.append(generator)
            self._back[id(generator)] = _back(generator)

    def among(self, values: Iterable[Any]) -> None:
        """Those of a module's attributes: all of its size, so that a look at the types must do."""
        if not _TYPES.isdisjoint(map(type, values)):
            for each in values:
                if isinstance(each, _KINDS):
                    self.keep(each)

    def restore(self) -> None:
        for back in self._back.values():
            back()


@contextmanager
def generators_of(closure: Callable[[], Any] | None) -> Iterator[Generators]:
    generators = Generators(*(() if closure is None else found(closure)))
    try:
        yield generators
    finally:
        generators.restore()


def found(closure: Callable[[], Any]) -> list[Any]:
    """The generators that a closure can name."""
    generators, seen, layer = [], dict[int, Any](), [closure]
    for _ in range(DEPTH):
        fresh = {id(each): each for each in layer if id(each) not in seen and not isinstance(each, _CLOSED)}
        generators += [each for each in fresh.values() if isinstance(each, _KINDS)]
        seen |= fresh
        if len(seen) > OBJECTS:
            break
        layer = [inner for each in fresh.values() for inner in _inside(each)]
    return generators


def held(closure: Callable[[], Any], model: nn.Module) -> list[Any]:
    """The generators that the closure and the model's modules hold."""
    generators = Generators(*found(closure))
    for module in model.modules():
        generators.among(vars(module).values())
    return generators.held


def states(generators: list[Any]) -> list[bytes]:
    """To be compared."""
    return [pickle.dumps(state(each)) for each in generators]


def alike(a: Any, b: Any) -> bool:
    """Two states of NumPy's global generator."""
    return pickle.dumps(a) == pickle.dumps(b)


def state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _back(generator: Any) -> Callable[[], Any]:
    saved = state(generator)
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", saved)
    return partial(generator.setstate if isinstance(generator, random.Random) else generator.set_state, saved)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, _KINDS):
        return ()
    if isinstance(value, FunctionType):
        return _named(value)
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, dict | list | tuple | set):
        return () if len(value) > LENGTH else value.values() if isinstance(value, dict) else value
    if isinstance(value, nn.Module):
        held = vars(value).values()
        return () if _TYPES.isdisjoint(map(type, held)) else [each for each in held if isinstance(each, _KINDS)]
    return getattr(value, "__dict__", {}).values()


def _named(function: FunctionType) -> list[Any]:
    """What a function of the user's holds or names."""
    names = function.__globals__
    if str(names.get("__name__")).partition(".")[0] in _LIBRARIES:
        return []
    held = [cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY]
    held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return held + [names[name] for name in _names(function.__code__) if name in names]


def _names(code: CodeType) -> set[str]:
    """Of a function's code and of the functions inside it."""
    return set(code.co_names).union(*(_names(each) for each in code.co_consts if isinstance(each, CodeType)))
