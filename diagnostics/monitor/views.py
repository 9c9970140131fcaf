"""Views of the model's outputs that put numbers where a transpose would not: those of some examples among others'."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions, places, sequences
from diagnostics.monitor.flow import Graph
from diagnostics.monitor.layer import NOTHING, PARAMETER


class Views:
    """Of one forward. `scrambled`: shapes before and after. How numbers lie in memory that the model is given, who
    gives them knows."""

    def __init__(self, graph: Graph) -> None:
        self.scrambled: list[tuple[list[int], list[int]]] = []
        self._graph = graph
        # Of the last states of recurrent layers, their number of sequences, which is the second dimension.
        self._states = WeakTensorKeyDictionary()

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        x = args[0] if args else None
        if func in functions.RECURRENT:
            for state in sequences.last_states(out):
                self._states[state] = state.shape[1]
        elif not isinstance(x, Tensor) or not isinstance(out, Tensor):
            return
        elif func in functions.FLATTEN:
            flow = self._graph.flow(x)
            mixed = out.dim() > 0 and self._states.get(x) == out.shape[0]
            known = flow not in (NOTHING, PARAMETER)
            if mixed or (known and places.scrambles(x.shape, out.shape, flow.channels_first)):
                self.scrambled.append((list(x.shape), list(out.shape)))
        elif func in functions.SELECTING and x in self._states:  # of packed sequences, back in their own order
            self._states[out] = out.shape[1]
