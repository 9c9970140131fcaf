"""Whether the answer to an example depends on its place in the batch, which means nothing, and whether that to a text
depends on the order of its tokens.

The examples change places before the model and back behind it. A batch norm, or attention between examples, gives the
same answers then; an encoding of positions along the batch, or a view that deals numbers out to other examples, does
not. Attention and sums over the tokens of a text give the same answer whatever their order, unless positions are told.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diagnostics.curvature import generators
from diagnostics.monitor import describe, functions
from diagnostics.monitor.answers import MOST
from diagnostics.monitor.forwards import random_state

FEWEST = 8  # examples
MOVED = 0.05  # of how far the answers to different examples are apart: less may be of a tie, or of rounding
ROUNDED = 2e-2  # of the answers' own size: what half precision may leave
SAME = 1e-4  # of how far they are apart: what single precision leaves of sums in another order is far less
WORDS = 8  # tokens, of which two lie side by side in many orders


def told(model: nn.Module, closure: Callable[[], Any]) -> dict[str, Any]:
    """As entries of the run: "by_place" and "order_blind". Nothing where chance takes part, or where the first
    dimension may be something else than the examples."""
    if describe.is_compiled(model) or describe.compiled_frames():  # which hooks would change
        return {}
    usual = _usual(model, closure)
    if usual is None:
        return {}
    by_place = _by_place(model, closure, usual)
    each_token = usual.dim() > 2  # where the first dimension may also be time, or agents that differ
    if each_token and not (by_place and _runs_along_texts(model, closure, usual)):
        return {"by_place": 0.0, "order_blind": False}
    return {"by_place": by_place, "order_blind": _order_blind(model, closure, usual)}


def _by_place(model: nn.Module, closure: Callable[[], Any], usual: Tensor) -> float:
    """How far answers move when their examples change places, over how far they are apart; 0 where they do not."""
    order = _shuffled(len(usual)).to(usual.device)
    moved = _moved(model, closure, lambda x: x[order] if len(x) == len(order) else x)
    if moved is None or moved.shape != usual.shape:
        return 0.0
    moved = moved[order.argsort()]
    off, apart = (moved - usual).norm(), (usual - usual.mean(0)).norm()
    told = torch.isfinite(off) & (off > MOVED * apart) & (off > ROUNDED * usual.norm()) & (apart > 0)
    return float(off / apart) if told else 0.0


def _order_blind(model: nn.Module, closure: Callable[[], Any], usual: Tensor) -> bool:
    """Whether the answer to each text is the same for its tokens in any order; the answers to its tokens, but for that
    order."""
    if not any(isinstance(module, nn.Embedding) for module in model.modules()):
        return False
    order: Tensor | None = None

    def shuffled(x: Tensor) -> Tensor:
        nonlocal order
        is_text = functions.holds_tokens(x) and x.shape[1] >= WORDS
        order = _shuffled(x.shape[1]).to(x.device) if is_text else None
        return x if order is None else x[:, order]

    moved = _moved(model, closure, shuffled)
    if order is None or moved is None or moved.shape != usual.shape:
        return False
    moved = moved[:, order.argsort()] if moved.dim() > 2 else moved
    apart = (usual - usual.mean(0)).norm()
    return bool(((moved - usual).norm() <= SAME * apart) & (apart > ROUNDED * SAME * usual.norm()))


def _runs_along_texts(model: nn.Module, closure: Callable[[], Any], usual: Tensor) -> bool:
    """Whether the answers to one text depend on its tokens alone, and each on other tokens than its own."""

    def changed(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, 0] = x[0, (x[0] != x[0, 0]).long().argmax()]
        return x

    moved = _moved(model, closure, changed)
    if moved is None or moved.shape != usual.shape:
        return False
    off, apart = (moved - usual).flatten(2).norm(dim=2), (usual - usual.mean(0)).norm()
    return bool((off[0, 1:].norm() > SAME * apart) & (off[1:].norm() <= SAME * apart))


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _usual(model: nn.Module, closure: Callable[[], Any]) -> Tensor | None:
    """`None` also where chance takes part."""
    held = generators.held(closure, model)
    own, before = generators.states(held), random_state(model)
    usual = _answers(model, closure, None)
    if usual is None or not before.same(random_state(model)) or own != generators.states(held):
        return None
    return _double(usual)


def _moved(model: nn.Module, closure: Callable[[], Any], change: Callable[[Tensor], Tensor]) -> Tensor | None:
    try:
        moved = _answers(model, closure, change)
    finally:
        _answers(model, closure, None)  # what a model keeps of its last call is again of the batch as it was
    return None if moved is None else _double(moved)


def _double(x: Tensor) -> Tensor:
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).double()


def _answers(model: nn.Module, closure: Callable[[], Any], change: Callable[[Tensor], Tensor] | None) -> Tensor | None:
    """Of one call of the model, to what it is given changed; `None` where it is called otherwise."""
    calls: list[Tensor | None] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        alone = len(args) == 1 and not any(True for _ in functions.tensors(tuple(kwargs.values())))
        plain = alone and isinstance(args[0], Tensor) and args[0].dim() > 1 and len(args[0]) >= FEWEST
        calls.append(args[0] if plain else None)
        return ((change(args[0]),), kwargs) if plain and change is not None else None

    def leave(module: nn.Module, args: tuple, out: Any) -> None:
        calls[-1] = out if _is_answer(calls[-1], out) else None

    hooks = [model.register_forward_pre_hook(enter, with_kwargs=True), model.register_forward_hook(leave)]
    try:
        with torch.no_grad(), _WithoutDropout():
            closure()
    finally:
        for hook in hooks:
            hook.remove()
    return calls[0].detach() if len(calls) == 1 and calls[0] is not None else None


def _is_answer(x: Tensor | None, out: Any) -> bool:
    """To each example, or to each of its tokens."""
    if x is None or not isinstance(out, Tensor) or out.shape[:1] != x.shape[:1]:
        return False
    return out.dim() <= 2 or (out.shape[:-1] == x.shape and functions.holds_tokens(x) and out.numel() <= MOST)


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
