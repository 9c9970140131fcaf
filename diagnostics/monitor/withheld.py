"""Parameters that the backward passes of the first update left without a gradient: those that the closure's loss has
one for, those that it depends on without having one, as through argmax, and those that it does not depend on."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diagnostics.monitor import describe, forwards, functions

FEW = 8  # modules, or parameters, that are asked one by one whether anything depends on them; more are asked together
CHANGED = 1e-3  # of the loss: more than rounding, where weights are moved by as much as they are large


def names(model: nn.Module, closure: Callable[[], Any]) -> dict[str, list[str]]:
    """As entries of the run: "withheld", "by_value", "unused". Nothing where the loop has removed all gradients by
    now."""
    trained = {name: each for name, each in describe.unwrap(model).named_parameters() if each.requires_grad}
    without = {name: each for name, each in trained.items() if each.grad is None}
    if not without or len(without) == len(trained):
        return {}
    with forwards.ours(model, closure), torch.enable_grad():
        gradients = torch.autograd.grad(closure(), list(without.values()), allow_unused=True)
    given = {name for name, each in zip(without, gradients, strict=True) if each is not None and bool(each.any())}
    rest = {name: each for name, each in without.items() if name not in given}
    found: dict[str, Collection[str]] = {"withheld": given}
    if rest and not (describe.is_compiled(model) or describe.compiled_frames()):  # which would be compiled anew
        by_value = _depended_on(model, closure, rest)
        found |= {"by_value": by_value, "unused": _unused(model, closure, rest) - by_value}
    return {entry: [describe.plain_name(name) for name in without if name in some] for entry, some in found.items()}


def _depended_on(model: nn.Module, closure: Callable[[], Any], parameters: Mapping[str, Tensor]) -> set[str]:
    """What is used without a graph, as a teacher or a backbone, is to stay as it is. Those of one module are moved
    together: a bias alone may leave what is rounded as it is."""
    with forwards.ours(model, closure), torch.enable_grad(), _Uses() as uses:
        closure()
    modules = dict[str, list[str]]()
    for name, each in parameters.items():
        if id(each) in uses.seen:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    if not modules:
        return set()
    groups = list(modules.values()) if len(modules) <= FEW else [[name for each in modules.values() for name in each]]
    usual = _loss(model, closure)
    moved = [_loss(model, closure, [parameters[name] for name in names]) for names in groups]
    felt = [math.isfinite(loss) and abs(loss - usual) > CHANGED * abs(usual) for loss in moved]
    return {name for names, is_felt in zip(groups, felt, strict=True) if is_felt for name in names}


def _unused(model: nn.Module, closure: Callable[[], Any], parameters: Mapping[str, Tensor]) -> set[str]:
    """What may be moved, and the loss is the same to the last bit."""
    usual = _loss(model, closure)
    if len(parameters) > FEW:
        return set(parameters) if _loss(model, closure, list(parameters.values())) == usual else set()
    return {name for name, each in parameters.items() if _loss(model, closure, [each]) == usual}


def _loss(model: nn.Module, closure: Callable[[], Any], moved: Sequence[Tensor] = ()) -> float:
    """With these moved by as much as they are large; the same numbers are drawn each time."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(each.shape, generator=generator).to(each) for each in moved]
    weights = [each.detach() + _size(each) * draw for each, draw in zip(moved, draws, strict=True)]
    return float(forwards.loss_at(weights, moved, closure, model, None))


def _size(weights: Tensor) -> Tensor:
    size = weights.norm() / weights.numel() ** 0.5
    return torch.where(size > 0, size, 1.0)


class _Uses(TorchFunctionMode):
    """Identities of the parameters that a function is given while a graph is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[int]()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            given = functions.tensors((*args, *kwargs.values()))
            self.seen.update(id(each) for each in given if isinstance(each, nn.Parameter))
        return func(*args, **kwargs)
