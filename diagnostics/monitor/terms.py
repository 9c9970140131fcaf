"""Terms of a loss that compare several answers with targets, or outputs of which one term compares several numbers: how
hard each pulls at the weights that they share, and whether its answers tell the examples apart.

Source: Chen et al. 2018 (GradNorm), who balance the lengths of these gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diagnostics.metrics import OUTPUT
from diagnostics.monitor import functions, written
from diagnostics.monitor.written import Difference, Error, Errors

MOST = 8  # terms or outputs, each of which costs a backward
LABELLED = {functions.spelled(each) for each in functions.LABELLED}
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


class Part(NamedTuple):
    """Of a loss: what is `factor` times this tensor's derivative is its gradient."""

    name: str
    of: Tensor
    factor: Tensor
    loss: Tensor
    mean_answer_loss: Tensor


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
    """How many numbers are compared by a forward, as far as they may be told apart."""

    def __init__(self) -> None:
        self.count = 0

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        found = written.of_function(func, args, kwargs) or written.difference(func, args)
        if found is not None:
            self.count += _outputs(found)


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
        if not 1 <= len(calls) <= MOST or not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            return [], {}
        parts, some = _parts(loss.sum(), calls), _some(weights)
        if len(parts) < 2 or not some:
            return [], {}
        pulls = [
            torch.autograd.grad(part.of, some, part.factor, retain_graph=True, allow_unused=True) for part in parts
        ]
        columns = {
            "loss": torch.stack([part.loss.float() for part in parts]),
            "mean_answer_loss": torch.stack([part.mean_answer_loss.float() for part in parts]),
            "pull": torch.stack([_share(pulls, at) for at in range(len(parts))]),
        }
        return [part.name for part in parts], columns


def _parts(loss: Tensor, calls: Sequence[Call]) -> list[Part]:
    if len(calls) == 1:
        return _by_output(loss, calls[0].error)
    factors = torch.autograd.grad(loss, [each.loss for each in calls], retain_graph=True, allow_unused=True)
    pairs = [(call, factor) for call, factor in zip(calls, factors, strict=True) if factor is not None]
    names = _names([call.error.name for call, _ in pairs])
    return [
        Part(name, call.loss, factor, call.loss.detach(), call.of_mean_answer())
        for name, (call, factor) in zip(names, pairs, strict=True)
    ]


def _by_output(loss: Tensor, error: Error) -> list[Part]:
    """Each one's squared error, whichever error the loss is made of."""
    outputs = _outputs(error)
    (factor,) = torch.autograd.grad(loss, [error.answer], retain_graph=True, allow_unused=True)
    if factor is None or outputs < 2:
        return []
    answers, targets = (x.detach().float().flatten(0, -2) for x in (error.answer, error.target))
    means = answers.mean(0).expand_as(answers)
    losses, mean_losses = (F.mse_loss(x, targets, reduction="none").mean(0) for x in (answers, means))
    numbered = torch.eye(outputs, dtype=factor.dtype, device=factor.device)
    return [
        Part(f"{OUTPUT}{at}", error.answer, factor * numbered[at], losses[at], mean_losses[at])
        for at in (targets != targets[:1]).any(0).nonzero().flatten().tolist()
    ]


def _outputs(of: Error | Difference) -> int:
    """Numbers in the answer to an example, or to each place of a sequence; 1 where they are many, lie otherwise, or are
    scores of labels.
    """
    scores = isinstance(of, Error) and of.name in LABELLED
    plain = of.answer.shape == of.target.shape and of.answer.dim() in (2, 3) and of.answer.shape[-1] <= MOST
    return of.answer.shape[-1] if plain and not scores else 1


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
