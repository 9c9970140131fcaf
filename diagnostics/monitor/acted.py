"""Whether the states that a policy is given are those in which its actions were chosen.

Source: Schulman et al. 2017, eq. 3: the ratio of an action's probability in a state to what it was when it was chosen.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions
from diagnostics.monitor.states import States

ENTRIES = 1024  # of an example, and examples, that are looked at
FEWEST = 16  # pairs of examples that are one
ROUNDING = 1e-5  # of logarithms of probabilities, of one network and one state, in float32
HALF = 0.5  # of the pairs: some states may come again by themselves, as the first of an episode


class Acted:
    """Of one forward: the first ratio, with the logarithms of both probabilities."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._differences = WeakTensorKeyDictionary()
        self._ratio: tuple[list[Tensor], Tensor, Tensor] | None = None

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if self._ratio is not None or not isinstance(out, Tensor) or not functions.are_tensors(args[:2]):
            return
        if func in functions.SUBTRACTING and len(args) > 1:
            new, old = args[:2]
            behind = self._states.behind([new])
            known = new.requires_grad and not old.requires_grad and not self._states.behind([old])
            if behind and known and new.shape == old.shape and new.dtype == old.dtype == torch.float32:
                given = [self._states.given[each] for each in behind]
                self._differences[out] = given, new.detach(), old
        elif func in functions.EXPONENTIAL and args and args[0] in self._differences:
            self._ratio = self._differences[args[0]]

    def elsewhere(self) -> list[int]:
        """How many examples there are, and how many different ones: where in most pairs that are one, by their state
        and by what the policy gives their action, that action was given something else when it was chosen."""
        if self._ratio is None:
            return []
        given, new, old = self._ratio
        if any(x.dim() < 2 or len(x) != new.numel() or x.is_complex() for x in given):
            return []
        rows = torch.cat([x[:ENTRIES].reshape(min(len(x), ENTRIES), -1)[:, :ENTRIES].double() for x in given], 1)
        states = rows.unique(dim=0, return_inverse=True)[1]
        known = torch.stack([each.reshape(-1)[:ENTRIES].double() for each in (states, new, old)], 1)
        known = known[known[:, 1].argsort()]
        apart = known[known[:, 0].argsort(stable=True)].diff(dim=0).abs()
        pairs = apart[(apart[:, 0] == 0) & (apart[:, 1] <= ROUNDING)]
        if len(pairs) < FEWEST or 2 * len(pairs) < len(known):
            return []
        differ = (pairs[:, 2] > 10 * ROUNDING).double().mean()
        return [len(known), int(states.max()) + 1] if differ > HALF else []
