"""Whether the answer to an example depends on its place in the batch, which means nothing.

The examples change places before the model and back behind it. A batch norm, or attention between examples, gives the
same answers then; an encoding of positions along the batch, or a view that deals numbers out to other examples, does
not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diagnostics.curvature import generators
from diagnostics.monitor import describe, functions
from diagnostics.monitor.forwards import random_state

FEWEST = 8  # examples
MOVED = 0.05  # of how far the answers to different examples are apart: less may be of a tie, or of rounding
ROUNDED = 2e-2  # of the answers' own size: what half precision may leave


def by_place(model: nn.Module, closure: Callable[[], Any]) -> float:
    """How far answers move when their examples change places, over how far they are apart; 0 where they do not, where
    chance takes part, and where the first dimension may be something else than the examples."""
    if describe.is_compiled(model) or describe.compiled_frames():  # which hooks would change
        return 0.0
    held = generators.held(closure, model)
    own, before = generators.states(held), random_state(model)
    usual = _answers(model, closure, None)
    if usual is None or not before.same(random_state(model)) or own != generators.states(held):
        return 0.0
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(usual), generator=generator).to(usual.device)
    try:
        moved = _answers(model, closure, order)
    finally:
        _answers(model, closure, None)  # what a model keeps of its last call is again of the batch as it was
    if moved is None or moved.shape != usual.shape:
        return 0.0
    usual, moved = usual.double(), moved.double()
    off, apart = (moved - usual).norm(), (usual - usual.mean(0)).norm()
    told = torch.isfinite(off) & (off > MOVED * apart) & (off > ROUNDED * usual.norm()) & (apart > 0)
    return float(off / apart) if told else 0.0


def _answers(model: nn.Module, closure: Callable[[], Any], order: Tensor | None) -> Tensor | None:
    """Of one call of the model, with the examples in another order and back; `None` where it is called otherwise."""
    calls: list[Tensor | None] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        alone = len(args) == 1 and not any(True for _ in functions.tensors(tuple(kwargs.values())))
        plain = alone and isinstance(args[0], Tensor) and args[0].dim() > 1 and len(args[0]) >= FEWEST
        calls.append(args[0] if plain else None)
        return ((args[0][order],), kwargs) if plain and order is not None and len(args[0]) == len(order) else None

    def leave(module: nn.Module, args: tuple, out: Any) -> Any:
        x = calls[-1]
        if x is None or not isinstance(out, Tensor) or out.dim() > 2 or out.shape[:1] != x.shape[:1]:
            calls[-1] = None
            return None
        calls[-1] = out if order is None else out[order.argsort()]
        return calls[-1]

    hooks = [model.register_forward_pre_hook(enter, with_kwargs=True), model.register_forward_hook(leave)]
    try:
        with torch.no_grad(), _WithoutDropout():
            closure()
    finally:
        for hook in hooks:
            hook.remove()
    return calls[0].detach() if len(calls) == 1 and calls[0] is not None else None


class _WithoutDropout(TorchFunctionMode):
    """Whose masks are drawn by place."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in functions.DROPOUTS and args:
            return args[0]
        if func in functions.MULTI_HEAD:
            kwargs["training"] = False
        if func in functions.ATTENTION and "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)
