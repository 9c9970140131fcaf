"""Components that a module's own parameters hold, as a mixture's, a hidden Markov model's states or learned queries:
how many are different, where all began as one.

What a parameter of `nn.Linear` or another layer of torch is for is known, and its units are compared (`symmetry`); of
others only the shapes are. The parts along dimensions of size K are one if no parameter that has such a dimension tells
two of them apart, nor the first gradient of any: so they get the same updates for ever, but for rounding. Adam makes
steps of what rounding left where a gradient is 0, as at a mixture's weights; of the others it is enough that one stays.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diagnostics import stats
from diagnostics.monitor import describe
from diagnostics.monitor.distributed import is_dtensor

MOST = 1 << 20  # numbers of all parameters of one size: a table of many words holds no few components


class Components:
    """Made before the first update; `rows` is called after measured ones, first after the first."""

    def __init__(self, model: nn.Module):
        found = _held(model)
        self._held = {key: held for key, held in found if _alike([p.detach() for p in held], key[1])}
        self._looked = False

    def rows(self) -> Iterator[tuple[str, int, Tensor]]:
        """Name, number of components and of different ones, of those that began as one."""
        if not self._looked:
            self._looked = True
            pulled = {key: _pulled_alike(held, key[1]) for key, held in self._held.items()}
            self._held = {key: held for key, held in pulled.items() if held}
        for (name, size), held in self._held.items():
            yield f"{name}.parts", size, torch.stack([_different(p.detach(), size) for p in held]).amin()


def _held(model: nn.Module) -> Iterator[tuple[tuple[str, int], list[nn.Parameter]]]:
    """By name and size: the parameters that have a dimension of this size, named by the largest of a module's own."""
    parameters = [*model.parameters()]
    plain = not any(is_dtensor(p) or is_lazy(p) or p.is_complex() for p in parameters)
    if not plain or len({p.device for p in parameters}) != 1:
        return
    own = sorted(describe.own_parameters(model), key=lambda each: -each[1].numel())
    for size in sorted({each for _, parameter in own for each in parameter.shape if each > 1}):
        name = next(name for name, parameter in own if size in parameter.shape)
        held = [each for each in parameters if size in each.shape and each.numel() and each.is_floating_point()]
        alone = len(held) == 1 and held[0].dim() == 1  # as the biases of an average, which move as one
        if not alone and sum(each.numel() for each in held) <= MOST:
            yield (describe.plain_name(name), size), held


def _pulled_alike(parameters: list[nn.Parameter], size: int) -> list[nn.Parameter]:
    """Those that the first gradient moves, and no rounding; none where it tells parts apart."""
    gradients = [(p, p.grad) for p in parameters if p.grad is not None and not p.grad.is_sparse]
    largest = max((float(g.abs().amax()) for _, g in gradients), default=0.0)
    if largest == 0 or not _alike([g for _, g in gradients], size):
        return []
    return [p for p, g in gradients if float(g.abs().amax()) > stats.SAME * largest]


def _alike(tensors: list[Tensor], size: int) -> bool:
    """Whether all parts are the same in each, beside the largest entry of all."""
    largest = torch.stack([x.abs().amax().float() for x in tensors]).amax()
    apart = [(rows.amax(0) - rows.amin(0)).amax().float() for x in tensors for rows in _by_part(x, size)]
    return bool(torch.stack(apart).amax() <= stats.SAME * largest)


def _different(x: Tensor, size: int) -> Tensor:
    side = stats.project(*_by_part(x, size))
    return (stats.apart(side, side) > stats.SAME).sum()


def _by_part(x: Tensor, size: int) -> Iterator[Tensor]:
    """One row for each part along each dimension of this size; sorted where there are two, as of transitions between
    states: parts that change places change theirs in both."""
    if x.shape == (size, size):
        yield x.diagonal()[:, None]
        yield from (each.sort(1).values for each in (x, x.T))
    else:
        yield from (x.movedim(dim, 0).reshape(size, -1) for dim, each in enumerate(x.shape) if each == size)
