"""Extra forwards of the monitor's own, observed or at other weights, which leave the training bitwise as it was."""

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
