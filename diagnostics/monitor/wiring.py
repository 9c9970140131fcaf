"""Does the loop train what it looks like it trains? Evidence from a few updates, never from names alone.

A parameter outside the optimizer may belong to another optimizer, and an optimizer may hold parameters of another
model: only those that get gradients and do not move, or move nothing, are reported.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

UPDATES = 3  # that the evidence must last


class Wiring:
    """`look` is called after each update until the question is settled; only versions and presence are read."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, event: Callable[[str, str, str], None]) -> None:
        self._model, self._optimizer, self._event = model, optimizer, event
        self._versions: dict[str, int] = {}
        self._still: dict[str, int] = {}
        self._idle: dict[str, int] = {}
        self._unregistered = dict(_unregistered(model))
        self.settled = False

    def look(self, tensors: dict[str, Tensor]) -> None:
        inside = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        members = {id(p) for p in self._model.parameters()}
        for name, tensor in self._unregistered.items():
            if id(tensor) not in inside and tensor.requires_grad:
                self._outside(name, tensor)
        for name, tensor in tensors.items():
            if id(tensor) not in inside and tensor.requires_grad:
                self._outside(name, tensor)
            if id(tensor) not in members:
                self._foreign(name, tensor)
        if any(count >= UPDATES for count in (*self._still.values(), *self._idle.values())):
            self._report(tensors | self._unregistered)
        self.settled = self.settled or (not self._still and not self._idle)

    def _outside(self, name: str, tensor: Tensor) -> None:
        """A trainable parameter that the model uses and the optimizer does not have: has a gradient, and stays."""
        stayed = self._versions.get(name, tensor._version) == tensor._version
        self._versions[name] = tensor._version
        self._still[name] = self._still.get(name, 0) + 1 if stayed and tensor.grad is not None else 0

    def _foreign(self, name: str, tensor: Tensor) -> None:
        """A parameter of the optimizer that the model does not have: never gets a gradient."""
        self._idle[name] = self._idle.get(name, 0) + 1 if tensor.grad is None else 0

    def _report(self, tensors: dict[str, Tensor]) -> None:
        self.settled = True
        still = [name for name, count in self._still.items() if count >= UPDATES and not _held_elsewhere(tensors[name])]
        idle = [name for name, count in self._idle.items() if count >= UPDATES]
        if idle:
            trained = ", ".join(still) if still else "the model's parameters"
            message = (
                f"{len(idle)} of the optimizer's tensors are not parameters of the watched model and never got a "
                f"gradient, while the optimizer does not move {trained}: was a layer replaced, or the model copied, "
                f"after the optimizer was made? Make the optimizer after the model has its final parameters."
            )
            self._event("stale-parameters", message, ", ".join(still))
        hidden = [name for name in still if name in self._unregistered]
        if hidden:
            message = (
                f"{', '.join(hidden)}: used and given gradients, but in a plain list or dict, where neither "
                f"model.parameters() nor the optimizer finds them; they never change"
            )
            self._event("unregistered", message, ", ".join(hidden))
        for name in [] if idle else [name for name in still if name not in hidden]:
            message = (
                f"{name} gets a gradient but is in no optimizer and does not change: "
                f"add it to the optimizer, or freeze it with requires_grad_(False)."
            )
            self._event("not-in-optimizer", message, name)


def _unregistered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters of modules in lists, tuples and dicts that are plain attributes: PyTorch does not see these."""
    known = {id(p) for p in model.parameters()}
    for path, module in model.named_modules():
        for attribute, held in vars(module).items():
            if attribute.startswith("_") or not isinstance(held, list | tuple | dict):
                continue
            for key, each in held.items() if isinstance(held, dict) else enumerate(held):
                for name, parameter in _parameters(each):
                    if id(parameter) not in known:
                        yield f"{path}.{attribute}[{key!r}]{name}".removeprefix("."), parameter


def _parameters(held: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(held, nn.Module):
        yield from ((f".{name}", parameter) for name, parameter in held.named_parameters())
    elif isinstance(held, nn.Parameter):
        yield "", held


def _held_elsewhere(tensor: Tensor) -> bool:
    """Whether some other optimizer of this process has the parameter: it may step less often. Asked once in a run."""
    optimizers = (each for each in gc.get_objects() if issubclass(type(each), Optimizer))
    return any(tensor is p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
