"""Notices backward passes, through one parameter that stands for all.

Parameter hooks see local gradients under DDP, scaled ones under AMP and one micro-batch at a time; this file therefore
only counts passes, looks at what the parameter still holds when the first one begins, and asks the autograd engine to
call back when a pass is over, which is where the gradient can be seen before clipping.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from diagnostics.monitor.accumulated import Parts, first_entries
from diagnostics.monitor.distributed import entries, local

_queue: Any = getattr(
    torch.autograd.Variable._execution_engine, "queue_callback", None
)  # private; DDP and FSDP use it too
CALLS_BACK = _queue is not None
CLEARED = (
    "gradients of a backward pass were removed before another one and the update: those of another network's loss, as "
    "in a GAN, or of an accumulation that zero_grad cut short"
)


class Sentinel:
    """`passes` counts backward passes since `reset`; `carried` is the old gradient's norm when the first began.
    `cleared`: one ever began when the gradient of an earlier one since `reset` had been removed. `parts`: what the last
    of several passes added, where `keeping()`.

    `finished()` is called once after every pass. `reduced` says that DDP works: its own callback, which averages the
    gradients, is queued after ours, so ours queues itself once more.
    """

    def __init__(
        self,
        finished: Callable[[], None],
        quiet: Callable[[], bool],
        reduced: bool,
        guarded: Callable[[str], Any],
        keeping: Callable[[], bool],
    ) -> None:
        self.passes = 0
        self.carried: Tensor | float = float("nan")
        self.cleared = False
        self.parts: Parts | None = None
        self._moved, self._version = False, 0  # whether the parameter was written to since the first pass
        self._held: Tensor | None = None
        self._removed = False  # what earlier passes left was, when this one began
        self._finished, self._quiet, self._reduced, self._guarded = finished, quiet, reduced, guarded
        self._keeping = keeping
        self._task = -1
        self._parameter: Tensor | None = None
        self._node: Any = None
        self._hooks: list[Any] = []

    def attach(self, parameter: Tensor) -> None:
        if parameter is self._parameter:
            return
        self.detach()
        self._parameter = parameter
        self._node = torch.autograd.graph.get_gradient_edge(parameter).node  # held: the engine keeps only a weak one
        self._hooks = [
            self._node.register_prehook(self._begins),
            parameter.register_post_accumulate_grad_hook(self._accumulated),
        ]

    @property
    def gradient(self) -> Tensor | None:
        return None if self._parameter is None else self._parameter.grad

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._parameter, self._node = [], None, None

    def reset(self) -> None:
        self.passes, self.carried, self.parts, self._held, self._removed = 0, float("nan"), None, None, False
        self._moved = False

    def _begins(self, incoming: Any) -> None:
        with self._guarded("backward passes"):
            if not self._quiet() and self._parameter is not None:
                self._look_at(self._parameter.grad)

    def _look_at(self, old: Tensor | None) -> None:
        self.cleared |= self.passes > 0 and old is None
        self._removed = self.passes > 0 and old is None and self._keeping()
        self._held = first_entries(old) if self.passes and self._keeping() else None
        if isinstance(self.carried, float) and self.carried == 0:
            return
        held = 0.0 if old is None else torch.linalg.vector_norm(entries(local(old.detach())).float())
        if self.passes and isinstance(self.carried, Tensor) and isinstance(held, Tensor):
            held = torch.minimum(self.carried, held)
        self.carried = held

    def _accumulated(self, parameter: Tensor) -> None:
        with self._guarded("backward passes"):
            task = torch._C._current_graph_task_id()
            if self._quiet() or task == self._task:  # a second accumulation within the same pass
                return
            self._task = task
            self.passes += 1
            self._version = parameter._version if self.passes == 1 else self._version
            self._moved |= parameter._version != self._version
            self._keep(parameter)
            if CALLS_BACK and not _within_another():
                _queue(self._requeue if self._reduced else self._end)

    def _keep(self, parameter: Tensor) -> None:
        total = first_entries(parameter.grad) if self._removed or self._held is not None else None
        if total is not None:
            added = total if self._held is None else total - self._held
            self.parts = Parts(parameter, self.passes, added, total, self._moved)
        self._held, self._removed = None, False

    def _requeue(self) -> None:
        _queue(self._end)

    def _end(self) -> None:
        self._finished()


def _within_another() -> bool:
    """Whether this pass is of a checkpointed part, made within the whole one: it ends before the others' gradients are
    there."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not CheckpointFunction.backward.__code__:
        frame = frame.f_back
    return frame is not None
