"""Whether the backward that somebody wrote for a function is the derivative of its forward, by differences of the loss.

A gradient that is multiplied on its way, as a reversal does it, is meant; and what is let through a function that has
no derivative of use, as a rounding, belongs to none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from diagnostics.monitor import describe, forwards, losspath

STEP = 1e-2  # of the loss: what the gradient promises of a step, far more than rounding
FLAT = 1e-4  # of the loss: what is less may be rounding, or a function in steps
AGREE = 0.05  # of a slope, by steps of two sizes: it is one
OFF = 0.1  # of the gradient: more than the loss bends over a step


def told(model: nn.Module, closure: Callable[[], Any], given: Any = None) -> dict[str, Any]:
    """As an entry of the run: "wrong_backward", names of such functions and the slope along the gradient over its own
    length, which is 1 of a derivative. `given`: the loop's own loss, whose graph mostly tells that there are none."""
    if describe.is_compiled(model) or describe.compiled_frames():  # which would be compiled anew
        return {}
    if losspath.history(given) is not None and not _written(given):
        return {}
    with forwards.ours(model, closure), torch.enable_grad():
        loss = closure()
        written = _written(loss)
        below = {leaf for node in written for leaf in losspath.walk(node, set(), losspath.FAR)}
        parameters = [leaf.variable for leaf in below if leaf.name().endswith("AccumulateGrad")]
        if not parameters:
            return {}
        multiples = list[float]()
        hooks = [node.register_hook(lambda given, got: multiples.append(_multiple(given, got))) for node in written]
        gradients = torch.autograd.grad(loss, parameters)
        for hook in hooks:
            hook.remove()
    if any(each not in (0.0, 1.0) for each in multiples):
        return {}
    ratio = _ratio(
        float(loss.detach()), parameters, gradients, lambda w: forwards.loss_at(w, parameters, closure, model, None)
    )
    if ratio is None or abs(ratio - 1) <= OFF or (1.0 in multiples and 0 <= ratio < 1):
        return {}
    return {"wrong_backward": [sorted({_forward(node).__name__ for node in written}), ratio]}


def _written(loss: Tensor) -> list[Any]:
    nodes = losspath.walk(losspath.history(loss), set(), losspath.FAR)
    return [
        node
        for node in nodes
        if isinstance(node, BackwardCFunction) and not _forward(node).__module__.startswith("torch.")
    ]


def _forward(node: Any) -> type:
    return node._forward_cls  # private; the node's own name is that of its backward


def _multiple(given: Sequence[Tensor | None], got: Sequence[Tensor | None]) -> float:
    """By what a function multiplies the gradient that it gets, if it does that alone; 0 otherwise."""
    passed, received = ([each for each in some if each is not None] for some in (given, got))
    if len(passed) != 1 or len(received) != 1 or passed[0].shape != received[0].shape:
        return 0.0
    square = received[0].square().sum()
    times = (passed[0] * received[0]).sum() / square
    same = torch.allclose(passed[0], times * received[0], rtol=1e-4, atol=1e-6 * float(square.sqrt()))
    return (round(float(times), 3) if same else 0.0) if square > 0 else 0.0


def _ratio(
    loss: float, weights: list[Tensor], gradients: Sequence[Tensor], at: Callable[[list[Tensor]], Any]
) -> float | None:
    norm = float(torch.stack([each.norm() for each in gradients]).norm())
    if not 0 < norm < float("inf"):
        return None
    slopes = []
    for size in (STEP * abs(loss) / norm, STEP * abs(loss) / norm / 2):
        ahead, behind = (
            float(at([w.detach() + sign * size / norm * g for w, g in zip(weights, gradients, strict=True)]))
            for sign in (1.0, -1.0)
        )
        if not abs(ahead - behind) > FLAT * abs(loss):
            return None
        slopes.append((ahead - behind) / (2 * size))
    return slopes[1] / norm if abs(slopes[0] - slopes[1]) <= AGREE * abs(slopes[1]) else None
