"""Terms of a loss that compare several answers with targets: how hard each pulls at the weights that they share, and
whether its answers tell the examples apart.

Source: Chen et al. 2018 (GradNorm), who balance the lengths of these gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diagnostics.monitor import written
from diagnostics.monitor.written import Error, Errors

MOST = 8  # terms, each of which costs a backward
HELD = 1 << 22  # numbers of a gradient, held once a term: those of the first layers, which are the likeliest shared
GROWTH = 1.3  # from look to look, by the number of updates: three in the later half of a run


class Call(NamedTuple):
    """Which returned an error as one number."""

    error: Error
    loss: Tensor

    def of_mean_answer(self) -> Tensor:
        """The loss if each example were given the mean of all answers."""
        answer = self.error.answer.detach()
        mean = answer.mean(0, keepdim=True).expand_as(answer)
        return self.loss.detach() * self.error.of(mean).detach() / self.error.of(answer).detach()


class Calls(TorchFunctionMode):
    """Those of answers that are learned with targets that are not, and differ from example to example."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Call] = []
        self._errors = Errors()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        error = self._errors.follow(func, args, kwargs, out)
        if error is not None and out.requires_grad and _differ(error.target):
            self.seen.append(Call(error, out))
        return out


def _differ(target: Tensor) -> bool:
    return not target.requires_grad and bool((target != target[:1]).any())


class Comparisons:
    """How many there may be in a forward."""

    def __init__(self) -> None:
        self.count = 0

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        self.count += (written.of_function(func, args, kwargs) or written.difference(func, args)) is not None


class Terms:
    """Asked at ever fewer of the measured updates, if the first forward compares several times."""

    def __init__(self) -> None:
        self._next, self._over = 0, False

    def due(self, step: int, count: int) -> bool:
        """`count`: of the comparisons in a forward, which the first one is asked for; some may be no terms."""
        if not self._next:
            self._over = not 2 <= count <= 2 * MOST
        if self._over or step < self._next:
            return False
        self._next = max(step + 1, int(GROWTH * step))
        return True

    def rows(self, loss: Any, calls: Sequence[Call], weights: Sequence[Tensor]) -> tuple[list[str], dict[str, Any]]:
        """Names and columns of table `terms`. `loss`: of these calls, with its graph."""
        if not 2 <= len(calls) <= MOST or not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            return [], {}
        factors = torch.autograd.grad(loss.sum(), [each.loss for each in calls], retain_graph=True, allow_unused=True)
        pairs = [(call, factor) for call, factor in zip(calls, factors, strict=True) if factor is not None]
        some = _some(weights)
        if len(pairs) < 2 or not some:
            return [], {}
        pulls = [
            torch.autograd.grad(call.loss, some, factor, retain_graph=True, allow_unused=True) for call, factor in pairs
        ]
        columns = {
            "loss": torch.stack([call.loss.detach().float() for call, _ in pairs]),
            "mean_answer_loss": torch.stack([call.of_mean_answer().float() for call, _ in pairs]),
            "pull": torch.stack([_share(pulls, at) for at in range(len(pairs))]),
        }
        return _names([call.error.name for call, _ in pairs]), columns


def _some(weights: Sequence[Tensor]) -> list[Tensor]:
    """As many of the first as may be held."""
    chosen, room = [], HELD
    for each in weights:
        if each.numel() <= room:
            chosen.append(each)
            room -= each.numel()
    return chosen


def _share(pulls: Sequence[Sequence[Tensor | None]], at: int) -> Tensor:
    """Length of one term's gradient in the weights that it shares with others, over that of their sum; NaN without."""
    shared = []
    for place, own in enumerate(pulls[at]):
        others = [each[place] for term, each in enumerate(pulls) if term != at]
        against = [gradient for gradient in others if gradient is not None]
        if own is not None and against:
            shared.append(torch.stack([own.norm(), sum(against[1:], against[0]).norm()]).float())
    own, others = torch.stack(shared).norm(dim=0) if shared else torch.full((2,), torch.nan)
    return own / others


def _names(names: Sequence[str]) -> list[str]:
    """Numbered where one comes again."""
    return [f"{name}#{names[:at].count(name)}" if names.count(name) > 1 else name for at, name in enumerate(names)]
