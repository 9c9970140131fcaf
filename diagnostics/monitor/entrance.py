"""The training forward as the monitor sees it, by hooks on the model.

With a closure, activations are observed in one extra forward after the update, and nothing but the random state is
noted during training. Without one, the training forward itself is observed on measured steps - never that of a
compiled model, which a hook would break or slow down.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.monitor import arguments, losspath
from diagnostics.monitor.answers import Answers, Scale
from diagnostics.monitor.examples import Examples
from diagnostics.monitor.forwards import RandomState, is_quiet, random_state
from diagnostics.monitor.generated import Generated
from diagnostics.monitor.hook import Hook
from diagnostics.monitor.observe import Observer


class Entrance:
    """Hooks on the model's forward, there only for measured steps. They copy and pickle as nothing at all.

    Notes the random state at the start of the last training forward, follows the way back from its output, and opens an
    observer if there is no closure; what these take goes to `charge`.
    """

    def __init__(
        self,
        model: nn.Module,
        guarded: Callable[[str], Any],
        charge: Callable[[float], None],
        scale: Scale,
        learning: Callable[[Iterator[Tensor]], None],
        examples: Examples,
    ) -> None:
        """`learning`: told what parameters learn through the model."""
        self._model, self._guarded, self._charge, self._learning = model, guarded, charge, learning
        self._hooks: list[Any] = []
        self._open: Observer | None = None
        self._thread, self._depth = 0, 0  # where it was opened, and calls of the model there that are not over
        self.random_state: RandomState | None = None
        self.training: bool | None = None  # the mode of the last training forward
        self.observers: list[Observer] = []
        self.answers, self.generated = Answers(scale, charge, examples), Generated()
        self.observing = False
        self.asking = True  # until a forward told what losses are given
        self.bounds = dict[str, list[bool]]()  # as an `Observer` learns them

    def arm(self, observing: bool) -> None:
        self.disarm()
        self.observing, self.observers, self.random_state = observing, [], None
        if isinstance(self._model, torch.jit.ScriptModule):  # which takes no hooks
            return
        self._hooks = [
            self._model.register_forward_pre_hook(Hook(self.entered), with_kwargs=True),
            self._model.register_forward_hook(Hook(self.left), always_call=True, with_kwargs=True),
        ]

    @property
    def armed(self) -> bool:
        return bool(self._hooks)

    def disarm(self) -> None:
        self._close()  # a forward that an interruption ended did not come to its hook
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.observers = [], []  # which hold a batch of inputs
        self.answers.forget()
        self.generated.forget()

    def entered(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        with self._guarded("activations"):
            if self._open is not None:  # by a call around this one, or in another thread
                self._depth += self._opened_here()
                return
            if not torch.is_grad_enabled() or module is not self._model or is_quiet():
                return
            self.random_state, self.training = random_state(module), module.training
            if torch._C._are_functorch_transforms_active():  # whose tensors must not outlive them
                return
            self._learning(losspath.parameters([*args, *kwargs.values()]))
            if self.observing:
                observer = Observer(module, self.asking, inside=True, bounds=self.bounds)
                observer.__enter__()
                self._open, self._thread, self._depth = observer, threading.get_ident(), 1

    def left(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        with self._guarded("activations"):
            if self._opened_here():
                self._depth -= 1
            if self._opened_here() and self._depth == 0 and (observer := self._close()) is not None:
                observer.ended(args, kwargs, output)
                with observer.ours:
                    observer.cuts.ended(output)
                self.observers.append(observer)
                self._charge(observer.seconds)
        with self._guarded("targets"):
            if torch.is_grad_enabled() and not is_quiet() and not torch._C._are_functorch_transforms_active():
                inputs = arguments.in_order(module, args, kwargs)
                self.answers.passed(inputs, output)
                self.generated.passed(inputs)

    def _opened_here(self) -> bool:
        return self._open is not None and self._thread == threading.get_ident()

    def _close(self) -> Observer | None:
        observer, self._open = self._open, None
        if observer is not None:
            observer.__exit__(None, None, None)
        return observer
