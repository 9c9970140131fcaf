"""What a forward may write to, put back bitwise: buffers, parameters with what hangs on them, and plain attributes of
every module that runs.

Nobody is asked which modules these are. The watched model is saved as a whole; any other (a discriminator, a criterion
with buffers, a momentum encoder) when it is first entered, with everything below it, so that what its forward hands to
functions is saved too. In-place changes of tensors that are no module's buffer or parameter are not seen.
"""

import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import UninitializedBuffer
from torch.nn.utils import stateless
from torch.utils.weak import WeakIdKeyDictionary

from diagnostics.curvature.containers import Contents
from diagnostics.curvature.generators import Generators

# Which parameters of a module its forwards wrote to, in training and in evaluation mode. A copy of all of them would
# double a model for every evaluation; so there is one for the first evaluation, where a write shows whatever made it
# (`weight.data.clamp_` counts no version up), and from then on for those alone that were written to.
# By identity: a module may compare itself entry by entry, as one that holds a dictionary of tensors does.
_WRITTEN: dict[bool, MutableMapping[nn.Module, set[str]]] = {True: WeakIdKeyDictionary(), False: WeakIdKeyDictionary()}
_PLAIN = (int, float, bool, str, type(None), tuple, Tensor)


@contextmanager
def put_back(modules: list, generators: Generators) -> Iterator[None]:
    """Around a closure. Generators that the modules hold are saved with them."""
    entered = _Entered(generators)
    entered.keep(modules)
    handle = register_module_forward_pre_hook(entered)
    try:
        yield
        entered.learn()  # not from a forward that failed: it may not have come to its writes
    finally:
        handle.remove()
        entered.restore()


class _Entered:
    """A hook before every forward of this thread: another one may be training."""

    def __init__(self, generators: Generators) -> None:
        self._generators, self._thread = generators, threading.get_ident()
        self._modules: dict[int, tuple[nn.Module, dict[str, Any]]] = {}  # and its attributes
        self._new: list[tuple[nn.Module, bool]] = []  # and its mode
        self._buffers: list[_Buffer] = []
        self._places: list[tuple[dict[str, Any], frozenset[str]]] = []  # of buffers
        self._contents = Contents()
        self._loans: dict[int, tuple[Tensor, Tensor]] = {}
        self._parameters: list[_Parameter] = []
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []  # of parameters, such as their examples'

    def __call__(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._modules or threading.get_ident() != self._thread:
            return
        # Neither an observer of functions nor a transformation of them is to see our copies.
        with torch._C.DisableTorchFunction(), torch._C._DisableFuncTorch(), torch.no_grad():
            if _lends():
                self._borrowed(module)
            else:
                self.keep(list(module.modules()))

    def keep(self, modules: list) -> None:
        sharded = _sharded(modules)
        for module in modules:
            if id(module) not in self._modules:
                self._keep(module)
                if not sharded:
                    self._keep_parameters(module)

    def _keep(self, module: nn.Module) -> None:
        attributes = dict(vars(module))
        self._contents.keep(attributes)
        self._modules[id(module)] = module, attributes
        self._generators.among(attributes.values())
        if isinstance(module._buffers, dict):  # of a scripted module it is none, and registers none
            self._places.append((module._buffers, frozenset(module._buffers)))
        for name, buffer in module._buffers.items():
            if buffer is not None and type(buffer) is not UninitializedBuffer:
                self._buffers.append(_Buffer(module._buffers, name, buffer))

    def _keep_parameters(self, module: nn.Module) -> None:
        written = _WRITTEN[module.training].get(module)
        if written is None:
            self._new.append((module, module.training))
        for name, parameter in module._parameters.items():
            if parameter is not None and _in_place(parameter):
                if attributes := vars(parameter):
                    self._contents.keep(attributes)
                    self._attributes.append((attributes, dict(attributes)))
                copied = written is None or name in written or vars(module).get("max_norm") is not None
                self._parameters.append(_Parameter(module, name, parameter, copied))

    def _borrowed(self, module: nn.Module) -> None:
        """The values of buffers that `functional_call` lends to a module; its own are out of reach, and safe."""
        for buffer in module.buffers():
            if id(buffer) not in self._loans and not is_functorch_wrapped_tensor(buffer):
                self._loans[id(buffer)] = buffer, _memory(buffer.detach()).clone()

    def learn(self) -> None:
        """Which parameters this evaluation wrote to."""
        for module, training in self._new:
            _WRITTEN[training].setdefault(module, set())
        for parameter in self._parameters:
            if parameter.was_written():
                module = parameter.module
                _WRITTEN[module.training].setdefault(module, set()).add(parameter.name)

    def restore(self) -> None:
        """Each for itself: what cannot be put back keeps nothing else from it."""
        tasks: list[Callable[[], None]] = [each.restore for each in (*self._parameters, *self._buffers)]
        tasks += [partial(_keep_only, buffers, names) for buffers, names in self._places]
        tasks += [partial(_overwrite, buffer, value) for buffer, value in self._loans.values()]
        tasks.append(self._contents.restore)
        tasks += [partial(_restore_attributes, vars(module), before) for module, before in self._modules.values()]
        tasks += [partial(_restore_all, now, before) for now, before in self._attributes]
        failures = []
        with torch.no_grad():
            for task in tasks:
                try:
                    task()
                except Exception as error:
                    failures.append(error)
        if failures:
            raise failures[0]


class _Buffer:
    """A module's buffer: its place, its memory and its value."""

    __slots__ = ("_buffer", "_data", "_name", "_owner", "_value")

    def __init__(self, owner: dict[str, Any], name: str, buffer: Tensor) -> None:
        self._owner, self._name, self._buffer = owner, name, buffer
        self._data = buffer.data if type(buffer) is Tensor and _is_plain(buffer) else None
        self._value = _memory(buffer.detach()).clone()

    def restore(self) -> None:
        owner, buffer = self._owner, self._buffer
        if self._name not in owner or owner[self._name] is not buffer:  # a forward may replace it by a new tensor
            owner[self._name] = buffer
        if self._data is not None and not buffer.is_set_to(self._data):  # `resize_`, or `data = ...`
            buffer.data = self._data
        _overwrite(buffer, self._value)


class _Parameter:
    """A module's parameter: its place, its memory, its version and, if `copied`, its value."""

    __slots__ = ("_data", "_parameter", "_value", "_version", "module", "name")

    def __init__(self, module: nn.Module, name: str, parameter: Tensor, copied: bool) -> None:
        self.module, self.name, self._parameter = module, name, parameter
        self._data, self._version = parameter.data, parameter._version
        self._value = _copy(self._data) if copied else None

    def was_written(self) -> bool:
        if not self._untouched():
            return True
        return self._value is not None and not torch.equal(self._value, self._data)  # host sync, once a run

    def _untouched(self) -> bool:
        parameter = self._parameter
        return parameter._version == self._version and parameter.is_set_to(self._data)

    def restore(self) -> None:
        owner, parameter = self.module._parameters, self._parameter
        if self.name not in owner or owner[self.name] is not parameter:
            owner[self.name] = parameter  # type: ignore[assignment]
        if not parameter.is_set_to(self._data):  # `weight.data = ...`
            parameter.data = self._data
        if self._value is not None:
            _overwrite(parameter, self._value)
        if parameter._version != self._version:  # a graph of the training may hold it
            torch._C._autograd._unsafe_set_version_counter((parameter,), (self._version,))  # type: ignore


def _overwrite(tensor: Tensor, value: Tensor) -> None:
    """Always, and without a look at the version: batch norm moves its statistics without counting it up. The value is
    what a graph of the training may have saved, so that its version stays valid as well."""
    uncounted = tensor.is_inference()  # made in inference mode: has no version, and is written to only there
    with torch.inference_mode() if uncounted else _unsafe_preserve_version_counter(tensor):
        _memory(tensor).copy_(value)


def _memory(tensor: Tensor) -> Tensor:
    """The tensor, or where entries share memory (`expand`), the stretch that they lie in: it can be written to."""
    if not _is_plain(tensor):
        return tensor
    places = list(zip(tensor.shape, tensor.stride(), strict=True))
    if not any(stride == 0 and size > 1 for size, stride in places):
        return tensor
    reach = 1 + sum((size - 1) * stride for size, stride in places)
    return tensor.as_strided((reach,), (1,))


def _is_plain(tensor: Tensor) -> bool:
    """Dense, in one piece, and with data: it has a place in memory."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta


def _copy(data: Tensor) -> Tensor | None:
    try:
        return data.clone()
    except RuntimeError:  # no memory for it: the version and the place of the parameter still tell most writes
        return None


def _in_place(parameter: Tensor) -> bool:
    """A dense tensor of its own. Shards, quantized ones and the like are looked after by who made them."""
    plain = type(parameter) in (nn.Parameter, Tensor) and _is_plain(parameter)
    return plain and "ds_id" not in parameter.__dict__  # DeepSpeed gives them memory and takes it away


def _sharded(modules: list) -> bool:
    """FSDP changes what is in a module's places; where it was never imported (it takes half a second), none is."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(m, fsdp.FSDPModule | fsdp.FullyShardedDataParallel) for m in modules)


def _keep_only(buffers: dict[str, Any], names: frozenset[str]) -> None:
    for name in buffers.keys() - names:  # registered by a forward
        del buffers[name]


def _restore_attributes(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Counters, modes and tensors that were assigned anew; not what is mutable, such as tables of hooks."""
    if len(now) == len(before) and all(map(is_, now.values(), before.values())):
        return
    for name, value in before.items():
        if isinstance(value, _PLAIN) and now.get(name) is not value:
            now[name] = value


def _restore_all(now: dict[str, Any], before: dict[str, Any]) -> None:
    now.clear()
    now.update(before)


def _lends() -> bool:
    """Whether `functional_call` is at work: what is in a module's places then is not its own."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not stateless._functional_call.__code__:
        frame = frame.f_back
    return frame is not None
