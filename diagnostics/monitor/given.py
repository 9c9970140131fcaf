"""What `monitor.step` is given: a loss to record, and a closure that is meant to compute it once more.

A closure that does something else than that - makes an update, draws the next batch, moves a state along - would change
the training each time it is called. It is tried at the first step, and given up if it does not repeat itself.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.monitor import (
    advantages,
    exchanged,
    forwards,
    linear,
    lookahead,
    losspath,
    overlaps,
    own_backward,
    policies,
    transfer,
    withheld,
)
from diagnostics.monitor.broadcasts import Broadcasts
from diagnostics.monitor.guard import Guard, warn
from diagnostics.monitor.sending import NAN, Writer
from diagnostics.monitor.telling import Telling
from diagnostics.monitor.together import Together

Closure = Callable[[], Any]
ROUNDING = 1e-4  # relative difference that kernels of changing order may leave in the same loss
COARSE = 1e-2  # and in half precision


class Given:
    """`has_closure`: `None` before the first step, then whether there is a closure that may be called."""

    def __init__(
        self,
        model: nn.Module,
        writer: Writer,
        tell: Telling,
        guard: Guard,
        together: Together,
        learning: Callable[[Iterator[Tensor]], None],
        affords: Callable[[float], bool],
    ) -> None:
        """`learning`: told what parameters the loss gives gradients to; `affords(seconds)`: whether the budget does."""
        self._model, self._writer, self._guard, self._together = model, writer, guard, together
        self._tell, self._learning = tell, learning
        self._affords, self._began, self._call_seconds = affords, 0.0, 0.0
        self.has_closure: bool | None = None
        self._none_yet = False  # was given: one that comes later is welcome

    def loss(self, loss: Any) -> Any:
        """A scalar tensor on its device, or a float; `NAN` itself for what is no number."""
        if isinstance(loss, Tensor) and not loss.is_meta:
            if loss.numel() == 1:
                return loss.item() if transfer.on_host(loss.device) else loss.detach().reshape(())
            self._tell.once("loss-not-scalar", f"the loss has shape {tuple(loss.shape)}: its mean is recorded")
            return loss.detach().double().mean()
        try:
            return float(loss)
        except Exception:
            kind = "tensor without data" if isinstance(loss, Tensor) else type(loss).__name__
            self._tell.once("loss-unreadable", f"monitor.step was given a {kind} for a loss: NaN is recorded")
            return NAN

    def usable(self, loss: Any, closure: Closure | None) -> Closure | None:
        """The closure, if it may be called."""
        if closure is not None and not callable(closure):
            self._tell.once(
                "step-closure-not-callable",
                f"monitor.step was given a {type(closure).__name__} for a closure: it is left out. Give a function "
                "that computes the loss anew: closure=lambda: criterion(model(x), y)",
            )
            closure = None
        if self.has_closure is None or (self._none_yet and closure is not None):
            self._meet(loss, closure)
        return closure if self.has_closure else None

    def _meet(self, loss: Any, closure: Closure | None) -> None:
        """The first step: is there a closure, and what lies between the model's output and its loss?"""
        given, self._began = closure is not None, time.perf_counter()
        self._none_yet = not given
        if given and self._together.alone:  # a forward may wait for the other processes
            message = "only some of the processes called watch: units are seen in this one, curvature is not measured"
            self._tell("alone", f"{message}. Call watch on every process.", "")
            closure = None
        elif closure is None:
            self._tell("no-closure", "no closure was given to monitor.step: curvature is not measured", "")
        if closure is not None and not self._repeats(closure):
            closure = None
        self.has_closure = closure is not None
        self._writer.update_meta(closure=self.has_closure, **self._path(loss, closure), **self._asked(loss, closure))

    def _path(self, loss: Any, closure: Closure | None) -> dict[str, Any]:
        with self._guard("loss path"):
            tensor = loss if isinstance(loss, Tensor) and loss.grad_fn is not None else None
            if tensor is None and closure is not None:
                with forwards.ours(self._model, closure), torch.enable_grad():
                    tensor = closure()
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                self._learning(losspath.parameters([tensor]))
                return {
                    "loss_path": losspath.describe(tensor),
                    "loss_softmax": losspath.softmax(tensor),
                    "linear_model": linear.is_linear_model(tensor),
                    "linear_layers": linear.linear_layers(tensor),
                    "all_pairs": losspath.all_pairs(tensor) or self._all_labels(tensor, closure),
                    "one_answer": losspath.one_answer(tensor),
                    "one_sum": losspath.one_sum(tensor),
                    "all_columns": self._all_columns(tensor, closure),
                    "all_products": self._all_products(tensor, closure),
                    "advantages": self._advantages(tensor),
                } | self._of_new_graph(tensor, closure)
            if isinstance(tensor, Tensor):
                message = "the loss does not depend on any parameter: nothing can be learned from it"
                self._tell("no-graph", message, "loss")
        return {}

    def _asked(self, loss: Any, closure: Closure | None) -> dict[str, Any]:
        """Not told where the closure raises, which is said where it is used, or a graph that gives no derivative."""
        told = dict[str, Any]()
        if closure is None or self._together.active:  # parts of a backward that others wait for
            return told
        questions = (
            self._looks_ahead,
            self._exchanged,
            partial(withheld.names, self._model),
            partial(own_backward.told, self._model, given=loss),
        )
        for ask in questions:
            if self._may_ask():
                with contextlib.suppress(Exception):
                    told |= ask(closure)
        return told

    def _looks_ahead(self, closure: Closure) -> dict[str, Any]:
        with forwards.ours(self._model, closure):
            return lookahead.told(self._model, closure)

    def _exchanged(self, closure: Closure) -> dict[str, Any]:
        with forwards.ours(self._model, closure):
            return exchanged.told(self._model, closure)

    def _may_ask(self) -> bool:
        """Whether one more call of the closure keeps the budget, beside what this step has taken so far."""
        return self._affords(time.perf_counter() - self._began + self._call_seconds)

    def _all_columns(self, loss: Tensor, closure: Closure | None) -> int:
        """If they are compared with one target a row; a matrix of as many targets may be meant."""
        count = losspath.all_columns(loss)
        return count if count and closure and self._may_ask() and self._shapes(closure)[0].square(count) else 0

    def _all_products(self, loss: Tensor, closure: Closure | None) -> int:
        """If it is a row that the column is multiplied with; a matrix of weights may be meant."""
        if closure is None or not any(losspath.products(loss)) or not self._may_ask():
            return 0
        seen, again = self._shapes(closure)
        return next((count for node, count in losspath.products(again) if seen.column(node, count)), 0)

    def _all_labels(self, loss: Tensor, closure: Closure | None) -> int:
        """The same in a loss written out for outputs and labels."""
        if closure is None or not losspath.makes_pairs(loss) or not self._may_ask():
            return 0
        with contextlib.suppress(Exception):  # numbers of any kind may meet there; what else is told is not to be lost
            return self._shapes(closure)[0].labelled
        return 0

    def _advantages(self, loss: Tensor) -> list[str]:
        with contextlib.suppress(Exception):  # a graph may be of any kind; what else is told is not to be lost
            return advantages.told(self._model, loss)
        return []

    def _of_new_graph(self, loss: Tensor, closure: Closure | None) -> dict[str, Any]:
        """What is read of a loss's factors, where its functions make that worth a call."""
        told = dict[str, Any]()
        for form, tell in ((policies, partial(policies.told, self._model)), (overlaps, overlaps.told)):
            with contextlib.suppress(Exception):
                if closure is not None and form.may_be_one(loss) and self._may_ask():
                    with forwards.ours(self._model, closure), torch.enable_grad():
                        told |= tell(closure())
        return told

    def _shapes(self, closure: Closure) -> tuple[Broadcasts, Tensor]:
        """What each function of the loss is given, and the loss."""
        with forwards.ours(self._model, closure), torch.enable_grad(), Broadcasts() as seen:
            return seen, closure()

    def _repeats(self, closure: Closure) -> bool:
        """Whether two calls from the same state give the same loss. One that raises is dealt with where it is used."""
        losses: list[Any] = []
        for _ in range(2):
            began = time.perf_counter()
            try:
                losses.append(forwards.observe(closure, self._model, None)[:2])
            except Exception:
                break
            self._call_seconds = time.perf_counter() - began
        same = len(losses) < 2 or _agree(losses[0][1], losses[1][1], any(observer.autocast for observer, _ in losses))
        if self._together.active:
            same = self._together.all_agree("same" if same else None)
        if not same:
            message = (
                "the closure gave two losses for the same weights: it draws another batch, or changes something that "
                "training uses. It is not called again. Let it compute the loss of the current batch, nothing else."
            )
            self._tell("closure-differs", message, "closure")
            warn(message)
        return same


def _agree(first: Any, second: Any, half: bool) -> bool:
    if not (_is_number(first) and _is_number(second)):
        return True  # no loss: said where it is used
    a, b = float(first), float(second)
    coarse = half or (isinstance(first, Tensor) and first.dtype.itemsize < 4)
    return a != a or b != b or a == b or abs(a - b) <= (COARSE if coarse else ROUNDING) * max(abs(a), abs(b))


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) or (isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta)
