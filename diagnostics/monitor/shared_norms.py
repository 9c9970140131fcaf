"""Batch norms that several places of a model share: in evaluation all get the statistics that these have together.
Those whose running statistics are the last batch's, and those whose epsilon outweighs the variance.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diagnostics.monitor import functions

FEWEST = 16  # numbers a channel: of fewer, means differ by half a deviation by chance
UNUSUAL = 0.01  # epsilon: ten times the largest that libraries use
SHORT = 0.5  # weight of the newest batch in the running statistics, from which on all others together have no more


class ModuleCall(NamedTuple):
    """A call of a module: its name, whether it is an activation or a batch norm, and the number of the call."""

    name: str
    activates: bool = False
    batch_norm: bool = False
    call: int = 0


@dataclass(frozen=True)
class _Use:
    """Where the norm is at work, and of each channel of its input the mean and deviation."""

    owner: ModuleCall
    mean: Tensor
    std: Tensor


class SharedNorms:
    """Of one forward, by the running mean that each norm has. `counts`: numbers a channel that each was given."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._kept: dict[str, tuple[float, Tensor]] = {}  # epsilon, and what it leaves of a channel's variance
        self._seen: dict[int, tuple[str, list[_Use]]] = {}

    @torch.no_grad()
    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], callers: list[ModuleCall]) -> None:
        """After a call. `callers`: the modules at work, the innermost last: the norm, or who calls its function."""
        if func not in functions.BATCH_NORM:
            return
        count = functions.normalized(func, args, kwargs) or 0
        if count and callers and callers[-1].batch_norm:
            self.counts[callers[-1].name] = count
        x, running = args[0].detach().float(), functions.argument(args, kwargs, 1, "running_mean")
        dims = [dim for dim in range(x.dim()) if dim != 1]
        epsilon = functions.argument(args, kwargs, 7, "eps", 0.0)
        if count and callers and epsilon >= UNUSUAL:
            variance = torch.var(x, dims, correction=0)
            self._kept[callers[-1].name] = epsilon, (variance / (variance + epsilon)).median()
        if count < FEWEST:
            return
        outer = callers[:-1] if callers and callers[-1].batch_norm else callers
        if not isinstance(running, Tensor) or not outer:
            return
        variance, mean = torch.var_mean(x, dims, correction=0)
        uses = self._seen.setdefault(id(running), (callers[-1].name, []))[1]
        uses.append(_Use(outer[-1], mean, variance.sqrt()))

    def told(self, modules: Mapping[str, nn.Module]) -> dict[str, list[list]]:
        """What the run says of them."""
        return {
            "shared_norms": [list(each) for each in self.found()],
            "short_memory": [list(each) for each in self.short_memory(modules)],
            "norm_epsilons": [[name, epsilon, float(kept)] for name, (epsilon, kept) in self._kept.items()],
        }

    def short_memory(self, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, float, int]]:
        """Name, momentum and numbers a channel of norms that keep next to nothing of earlier batches."""
        for name, count in self.counts.items():
            norm = modules.get(name)
            momentum = getattr(norm, "momentum", None)  # without one all batches count alike
            if (
                isinstance(momentum, float | int)
                and momentum >= SHORT
                and getattr(norm, "running_mean", None) is not None
            ):
                yield name, float(momentum), count

    def found(self) -> list[tuple[str, int, float]]:
        """Name, number of uses, and how far the distribution of one of them lies from what they have together: in
        deviations of it, by the distance that takes one normal distribution into another (2-Wasserstein)."""
        return [(name, len(uses), _apart(uses)) for name, uses in self._seen.values() if _by_several(uses)]


def _by_several(uses: list[_Use]) -> bool:
    """Two calls of one part, as of the two branches of a siamese network, are one use of the norm each."""
    return len(uses) > 1 and (
        len({use.owner.name for use in uses}) > 1 or len({use.owner.call for use in uses}) < len(uses)
    )


def _apart(uses: list[_Use]) -> float:
    mean, std = torch.stack([use.mean for use in uses]), torch.stack([use.std for use in uses])
    together = std.square().mean(0).sqrt().clamp(min=torch.finfo(std.dtype).tiny)
    distances = ((mean - mean.mean(0)) / together).square() + (std / together - 1).square()
    return float(distances.mean(1).amax().sqrt())
