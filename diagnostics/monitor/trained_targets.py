"""Targets that are made by what is trained, and how far they are apart."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diagnostics.monitor import functions

Made = tuple[bool, Tensor]  # whether a target has a graph, and its numbers


def made(func: Callable, args: tuple, kwargs: dict[str, Any]) -> list[Made]:
    """Of a call, if it compares an output with a target."""
    target = functions.argument(args, kwargs, 1, "target") if func in functions.COMPARING else None
    if not isinstance(target, Tensor) or not target.is_floating_point() or target.numel() < 2:
        return []
    return [(target.requires_grad, target.detach())]


class TrainedTargets:
    """Of a loss that compares once: by the first closure, which is run with a graph."""

    def __init__(self) -> None:
        self._trained: bool | None = None

    def columns(self, made: Sequence[Made]) -> dict[str, Tensor]:
        if self._trained is None:
            self._trained = len(made) == 1 and made[0][0]
        return {"target_variance": made[0][1].float().var()} if self._trained and len(made) == 1 else {}
