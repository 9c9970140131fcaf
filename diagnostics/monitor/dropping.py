"""How much of the difference between answers is what dropout draws, and not what the model is given.

Dropout with p adds to a number noise of variance p / (1 - p) of its square (Srivastava et al. 2014): at p = 0.5 as much
as the number itself, at p = 0.9, as where p was taken for the share that is kept, nine times as much.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diagnostics.monitor import forwards, functions
from diagnostics.monitor.averaged import evaluated

MUCH = 0.75  # from here on the noise is three times as large as the number; nobody is asked below


def columns(model: nn.Module, closure: Callable[[], Any], states: forwards.RandomState | None) -> dict[str, Tensor]:
    """Two forwards, one of them as if nothing were dropped."""
    usual = evaluated(model, closure, states)
    with _Kept():
        whole = evaluated(model, closure, states)
    if usual is None or whole is None or len(usual.parts) != len(whole.parts):
        return {}
    pairs = [(a.values, b.values) for a, b in zip(usual.parts, whole.parts, strict=True)]
    noise = torch.stack([(a - b).square().mean() for a, b in pairs]).sum()
    signal = torch.stack([(b - b.mean(0)).square().mean() for _, b in pairs]).sum()
    return {"dropout_noise": noise / (noise + signal)}


class _Kept(TorchFunctionMode):
    """Draws what dropout draws, so that whatever else is drawn stays the same, and drops nothing."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in functions.DROPOUTS:
            return func(*args, **kwargs)
        x = functions.argument(args, kwargs, 0, "input")
        func(x.clone(), *args[1:], **{name: value for name, value in kwargs.items() if name != "input"})
        return x
