"""Whether a recurrent net begins every step of a loop from the same state: what a step kept is given to none of the
next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions, sequences

STEPS = 5  # of a loop: fewer calls may weigh a few things that could follow one state
_CELLS = {torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell}


@dataclass
class _Net:
    """`states`: what its first step began from. `begun`: whether a number of those without a gradient is not 0."""

    states: list[Tensor]
    calls: int = 0
    same: bool = True
    remembers: bool = True  # whether a step gives a state apart from its answer
    begun: list[Tensor] = field(default_factory=list)


class Restarts:
    """Of one forward."""

    def __init__(self) -> None:
        self._nets: dict[int, _Net | None] = {}  # by their first weight; None where a state was of use
        self._states = WeakTensorKeyDictionary()  # that a step left, and nothing was given yet: of which net

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if isinstance(out, Tensor | tuple | list):
            for each in functions.tensors((*args, *kwargs.values())):
                if (net := self._states.pop(each, None)) is not None:
                    self._nets[net] = None
        if func in _CELLS or func in functions.RECURRENT:
            self._step(func, args, out)

    def told(self, parameters: Mapping[str, Tensor]) -> list:
        """Steps of such a net, whether they begin from zeros, and the names of its tensors; empty of no net."""
        for name, parameter in parameters.items():
            net = self._nets.get(id(parameter))
            if net is None or net.calls < STEPS:
                continue
            zeros = len(net.begun) == net.calls and not bool(torch.stack(net.begun).any())  # waits
            if zeros or (net.same and net.remembers):
                owner = name.rpartition(".")[0]
                return [net.calls, zeros, [each for each in parameters if each.rpartition(".")[0] == owner]]
        return []

    def _step(self, func: Callable, args: tuple, out: Any) -> None:
        states, weights = (list(functions.tensors((each,))) for each in args[1:3])
        if not states or not weights:
            return
        one = func in _CELLS or (sequences.read(func, args, {}) or [0])[0] == 1
        net = self._nets.setdefault(id(weights[0]), _Net(states))
        if net is None or not one:
            self._nets[id(weights[0])] = None
            return
        net.calls += 1
        net.same = net.same and all(a is b for a, b in zip(states, net.states, strict=True))
        if not any(each.requires_grad for each in states):
            net.begun.append(torch.stack([each.any() for each in states]).any())
        left = list(out[1:]) if isinstance(out, tuple) else []
        net.remembers = bool(left)
        self._states.update((each, id(weights[0])) for each in left)
