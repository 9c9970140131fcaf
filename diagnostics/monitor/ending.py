"""At which functions a gradient ends, where that of some weights is exactly zero.

Runs once or twice in a run, so it may wait for the device: the closure's graph is gone through backwards, with a look
at what each function receives and passes on. Where all of them pass some on, what comes together at the weights adds up
to nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.monitor import forwards, losspath

CANCELLED = "cancellation"


def ends(
    closure: Callable[[], Any], model: nn.Module, parameters: Sequence[Tensor], states: forwards.RandomState | None
) -> list[str]:
    """Names of the functions that receive a gradient and pass none on towards these parameters, the last of the forward
    first; nothing where one gets some after all. CANCELLED where gradients come to one, and add up to zero."""
    stops: dict[str, None] = {}
    wanted = {id(each) for each in parameters}

    def passed(node: Any, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]) -> None:
        if any(each is not None for each in inputs) and not _some(inputs) and _some(outputs):
            stops[losspath.function_of(node)] = None
        following = [id(getattr(to, "variable", None)) in wanted for to, _ in node.next_functions]
        if _some([each for each, is_wanted in zip(inputs, following, strict=False) if is_wanted]):
            stops[CANCELLED] = None

    with forwards.ours(model, closure), torch.enable_grad():
        if states is not None:
            forwards.set_random_state(model, states)
        loss = closure()
        nodes = [node for node in losspath.walk(losspath.history(loss), set(), losspath.FAR) if node.next_functions]
        hooks = [node.register_hook(partial(passed, node)) for node in nodes]
        try:
            gradients = torch.autograd.grad(loss, [p for p in parameters if p.requires_grad], allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
    if _some(gradients):
        return []
    return [CANCELLED] if CANCELLED in stops else list(stops)


def _some(gradients: Sequence[Tensor | None]) -> bool:
    return any(each is not None and bool(each.any()) for each in gradients)
