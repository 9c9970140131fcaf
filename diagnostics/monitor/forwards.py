"""The training forward as the monitor sees it, and extra forwards of its own.

With a closure, activations are observed in one extra forward after the update, and nothing but the random state is
noted during training. Without one, the training forward itself is observed on measured steps - never that of a
compiled model, which a hook would break or slow down.
"""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from diagnostics.curvature import generators, undisturbed
from diagnostics.monitor import arguments, losspath
from diagnostics.monitor.answers import Answers, Scale
from diagnostics.monitor.examples import Examples
from diagnostics.monitor.generated import Generated
from diagnostics.monitor.hook import Hook
from diagnostics.monitor.observe import Observer

_here = threading.local()


def is_quiet() -> bool:
    """Whether a forward or backward of ours is running: no monitor's hook counts it."""
    return getattr(_here, "depth", 0) > 0


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Work of ours: no hook counts it, a closure that calls `backward` finds no gradient to add to, and one that calls
    an optimizer's `step` fails before anything has changed."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    refusing = register_optimizer_step_pre_hook(_refuse)
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        yield
    finally:
        refusing.remove()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        _here.depth -= 1


def _refuse(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if is_quiet():  # of this thread: another one may train
        raise RuntimeError(f"the closure calls {type(optimizer).__name__}.step: let it compute the loss, nothing else")


@contextmanager
def ours(model: nn.Module, closure: Callable[[], Any]) -> Iterator[None]:
    """Work of ours on the model: training is left bitwise as it was, and no hook counts it."""
    with quiet(model), undisturbed(model, closure):
        yield


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


@dataclass(frozen=True)
class RandomState:
    """Of the global generators: torch's on the CPU and on the model's device, Python's and NumPy's."""

    host: Tensor
    device: Tensor | None
    python: Any
    numpy: Any

    def same(self, other: "RandomState") -> bool:
        alike = self.device is None or other.device is None or torch.equal(self.device, other.device)
        alike = alike and torch.equal(self.host, other.host) and self.python == other.python
        return alike and generators.alike(self.numpy, other.numpy)


def random_state(model: nn.Module) -> RandomState:
    device = _device(model)
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return RandomState(torch.get_rng_state(), on_device, random.getstate(), np.random.get_state())


def set_random_state(model: nn.Module, states: RandomState) -> None:
    torch.set_rng_state(states.host)
    if states.device is not None:
        torch.cuda.set_rng_state(states.device, _device(model))
    random.setstate(states.python)
    np.random.set_state(states.numpy)


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def observe(
    closure: Callable[[], Any],
    model: nn.Module,
    states: RandomState | None,
    asking: bool = False,
    graph: bool = False,
    bounds: dict[str, list[bool]] | None = None,
) -> tuple[Observer, Any, bool, bool]:
    """One extra forward, observed; with its `graph` it is seen where that is cut. Returns the observer, the loss, and
    whether random numbers were drawn: from the global generators, and from some of its own, whose state at the
    training forward nobody knows."""

    def observed() -> tuple[Observer, Any, bool, bool]:
        observer = Observer(model, asking, bounds=bounds)
        held = generators.held(closure, model)
        own = generators.states(held)
        if states is not None:
            set_random_state(model, states)
        before = random_state(model) if states is None else states
        with observer:
            loss = closure()
        if len(observer.ends) < 2:  # a model that goes on from its own answers is given them as constants on purpose
            with observer.ours:
                observer.cuts.ended(loss)
        with observer.ours:
            observer.draws.ended(loss)
        observer.loss = _number(loss)
        drew = not before.same(random_state(model))
        drew_own = own != generators.states(held)
        return observer, observer.loss, drew, drew_own

    if graph:
        with contextlib.suppress(RuntimeError):  # memory, or weights that are written to in place
            return _with_gradients(model, observed, closure)
    return _without_gradients(model, observed, closure)


def loss_at(
    weights: Sequence[Tensor],
    parameters: Sequence[Tensor],
    closure: Callable[[], Any],
    model: nn.Module,
    states: RandomState | None,
) -> Any:
    """The closure's loss at other weights, in an extra forward."""

    def loss() -> Any:
        if states is not None:
            set_random_state(model, states)
        return _number(closure())

    with standing_in(weights, parameters):
        return _without_gradients(model, loss, closure)


def _number(loss: Any) -> Any:
    """Without its graph, and a single number without dimensions, as those are that it is compared with."""
    if not isinstance(loss, Tensor):
        return loss
    return loss.detach().reshape(()) if loss.numel() == 1 else loss.detach()


def _without_gradients(model: nn.Module, forward: Callable[[], Any], closure: Callable[[], Any]) -> Any:
    """A forward of ours; with a graph only where the loss differentiates by itself (physics, gradient penalties)."""
    with ours(model, closure):
        try:
            with torch.no_grad():
                return forward()
        except Exception as error:  # a library (Pyro) may say in its own words that it wants a graph
            if isinstance(error, RuntimeError) and "grad" not in str(error):
                raise
    return _with_gradients(model, forward, closure)


def _with_gradients(model: nn.Module, forward: Callable[[], Any], closure: Callable[[], Any]) -> Any:
    with ours(model, closure), torch.enable_grad():
        return forward()


def gradient_at(
    weights: Sequence[Tensor],
    parameters: Sequence[Tensor],
    closure: Callable[[], Any],
    model: nn.Module,
    states: RandomState | None,
    of: Tensor,
) -> Tensor | None:
    """That of the closure's loss for one parameter, at other weights."""

    def gradient() -> Tensor | None:
        if states is not None:
            set_random_state(model, states)
        return torch.autograd.grad(closure(), of, allow_unused=True)[0]

    with standing_in(weights, parameters):
        return _with_gradients(model, gradient, closure)


@contextmanager
def standing_in(weights: Sequence[Tensor], parameters: Sequence[Tensor]) -> Iterator[None]:
    """Other weights in the parameters' places; the storages are exchanged, so that nothing is rounded or copied."""
    held = [parameter.data for parameter in parameters]
    try:
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.data = weight
        yield
    finally:
        for parameter, data in zip(parameters, held, strict=True):
            parameter.data = data
