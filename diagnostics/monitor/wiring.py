"""Does the loop train what it looks like it trains? Evidence from a few updates, never from names alone.

A parameter outside the optimizer may belong to another optimizer, and an optimizer may hold parameters of another
model: only those that get gradients and do not move, or move nothing, are reported.
"""

import gc
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.monitor import losspath
from diagnostics.monitor.distributed import is_dtensor, local

UPDATES = 3  # that the evidence must last
DEEPEST, MOST = 3, 1000  # containers within each other, and things in each: more are no layers
LATE = "gradients are written to after the optimizer's step and before the next backward pass, where nothing reads them"
UNSTORED = "the optimizer's state ({}) is still zero after several updates with a gradient"
FEW, SHOWN = 8, 256  # tensors that tell whether an optimizer keeps what it computes, and numbers of each
MOMENTS = {
    "m", "v", "mt", "vt", "m_t", "v_t", "exp_avg", "exp_avg_sq", "exp_inf", "avg_sq", "square_avg", "grad_avg",
    "momentum", "momentum_buffer", "velocity", "moment", "moment1", "moment2", "mean_square", "first_moment",
    "second_moment",
}  # fmt: skip
_CONVERSIONS = {
    "ToCopy", "Clone", "Alias", "Mul", "Div", "View", "UnsafeView", "T", "Transpose", "Unsqueeze", "Squeeze",
}  # fmt: skip


class Wiring:
    """`look` is called after each update until the question is settled; only versions and presence are read."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, event: Callable[[str, str, str], None], again: bool = False
    ) -> None:
        """`again`: parameters were replaced in the middle of the run, as is done on purpose too."""
        self._again = again
        self._model, self._optimizer, self._event = model, optimizer, event
        self._versions: dict[str, int] = {}
        self._still: dict[str, int] = {}
        self._idle: dict[str, int] = {}
        self._moved = set[str]()  # by another optimizer
        self._trains = False  # the optimizer moves some of the model's parameters
        self._unregistered = dict(unregistered(model))
        self._late = self._looks = 0
        self._before: list[Tensor] = []  # some numbers of a few weights, as the first look found them
        self.settled = False

    def look(self, tensors: dict[str, Tensor], late: Tensor | None = None) -> None:
        """`late`: a gradient that was written to between the optimizer's step and now; zeroing is no mistake."""
        self._looks += 1
        written = late is not None and late.layout == torch.strided and bool(late.any())
        self._late = self._late + 1 if written else 0
        inside = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        members = {id(p) for p in self._model.parameters()}
        for name, tensor in self._unregistered.items():
            if id(tensor) not in inside and tensor.requires_grad:
                self._outside(name, tensor)
        for name, tensor in tensors.items():
            if id(tensor) not in inside and tensor.requires_grad:
                self._outside(name, tensor)
            elif id(tensor) in members:
                self._trains |= self._versions.setdefault(name, tensor._version) != tensor._version
            if id(tensor) not in members and tensor.requires_grad:
                self._foreign(name, tensor)
        if self._late == UPDATES:
            self._event("late-gradients", LATE, "")
        if any(count >= UPDATES for count in (*self._still.values(), *self._idle.values())):
            self._report(tensors | self._unregistered)
        if self._looks == 1:
            self._before = [_some(tensor).clone() for tensor in self._few(tensors)]
        if self._looks == UPDATES and not self._again:
            self._look_at_state(tensors)
            self._before = []
        asked = self._looks >= UPDATES and not 0 < self._late < UPDATES
        self.settled = self.settled or (not self._still and not self._idle and asked)

    def _look_at_state(self, tensors: dict[str, Tensor]) -> None:
        """Whether the moments that the optimizer keeps of each weight are still zero, though it moved the weights."""
        kept = list[str]()
        for tensor, before in zip(self._few(tensors), self._before, strict=False):
            moments = _moments({} if is_dtensor(tensor) else self._optimizer.state.get(tensor, {}), tensor)
            if not moments or tensor.numel() < 2 or bool((_some(tensor) == before).all()):
                continue
            if any(bool(each.any()) for each in moments.values()):
                return
            kept += [key for key in moments if key not in kept]
        if kept:
            self._event("state-unstored", UNSTORED.format(", ".join(kept)), ", ".join(kept))

    @staticmethod
    def _few(tensors: dict[str, Tensor]) -> list[Tensor]:
        return list(tensors.values())[:FEW]

    def _outside(self, name: str, tensor: Tensor) -> None:
        """A trainable parameter that the model uses and the optimizer does not have: has a gradient, and stays."""
        if name in self._moved:
            return
        stayed = self._versions.get(name, tensor._version) == tensor._version
        if not stayed:
            self._moved.add(name)
            self._still.pop(name, None)
            return
        self._versions[name] = tensor._version
        self._still[name] = self._still.get(name, 0) + 1 if stayed and tensor.grad is not None else 0

    def _foreign(self, name: str, tensor: Tensor) -> None:
        """A parameter of the optimizer that the model does not have: never gets a gradient."""
        self._idle[name] = self._idle.get(name, 0) + 1 if tensor.grad is None else 0

    def _report(self, tensors: dict[str, Tensor]) -> None:
        self.settled = True
        elsewhere = _optimized_anywhere()
        still = [name for name, n in self._still.items() if n >= UPDATES and id(tensors[name]) not in elsewhere]
        idle = [name for name, count in self._idle.items() if count >= UPDATES]
        if (self._again or self._trains) and not still:
            return
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
                f"{', '.join(hidden)}: used and given gradients, but no parameter of a module: neither "
                f"model.parameters() nor the optimizer finds them; they never change"
            )
            self._event("unregistered", message, ", ".join(hidden))
        for name in [] if idle else [name for name in still if name not in hidden]:
            message = (
                f"{name} gets a gradient but is in no optimizer and does not change: "
                f"add it to the optimizer, or freeze it with requires_grad_(False)."
            )
            self._event("not-in-optimizer", message, name)


def _moments(state: dict[Any, Any], like: Tensor) -> dict[str, Tensor]:
    """Averages of gradients, by the names that these go by; none where something else is kept, whose zeros may be
    meant: a residual, an anchor, a sum that was just applied."""
    found = {key: each for key, each in state.items() if isinstance(each, Tensor) and each.shape == like.shape}
    plain = all(each.layout == torch.strided and not (each.is_meta or each.is_quantized) for each in found.values())
    named = all(str(key).lower().strip("_") in MOMENTS for key in found)
    return {str(key): each for key, each in found.items()} if plain and named else {}


def _some(tensor: Tensor) -> Tensor:
    return local(tensor).detach().reshape(-1)[:SHOWN]


def unregistered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters that PyTorch does not see: in lists, tuples and dicts that are plain attributes, and those that an
    attribute was converted from."""
    known = {id(p) for p in model.parameters()}
    for path, module in model.named_modules():
        for attribute, held in vars(module).items():
            if attribute.startswith("_"):
                continue
            for name, parameter in _parameters(held):
                if id(parameter) not in known:
                    known.add(id(parameter))
                    yield f"{path}.{attribute}{name}".removeprefix("."), parameter


def _parameters(held: Any, inside: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Names behind the attribute's own, and parameters, `inside` so many containers. Plain tensors are not asked:
    coordinates get gradients too."""
    if isinstance(held, list | tuple | dict) and inside < DEEPEST:
        for key, each in islice(held.items() if isinstance(held, dict) else enumerate(held), MOST):
            yield from ((f"[{key!r}]{name}", parameter) for name, parameter in _parameters(each, inside + 1))
    elif isinstance(held, Tensor) and isinstance(source := _source(held), nn.Parameter):
        yield "", source
    elif isinstance(held, nn.Module) and inside:
        yield from ((f".{name}", parameter) for name, parameter in held.named_parameters())
    elif isinstance(held, nn.Parameter):
        yield "", held


def _source(tensor: Tensor) -> Tensor | None:
    """What `.to(...)`, `.float()` and the like made the tensor from."""
    node = losspath.history(tensor)
    while node is not None and node.name().partition("Backward")[0] in _CONVERSIONS:
        inputs = [below for below, _ in node.next_functions if below is not None]
        node = inputs[0] if len(inputs) == 1 else None
    return getattr(node, "variable", None)


def _optimized_anywhere() -> set[int]:
    """Identities of what some optimizer of this process has, which may step less often. Asked once in a run."""
    optimizers = [each for each in gc.get_objects() if issubclass(type(each), Optimizer)]
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
