"""Run extra forwards and backwards of a model in training without leaving a trace, and so that they can be
differentiated twice.

Restored: random state (torch on every device in use, NumPy, Python), buffers, hooks on parameters. Never touched:
`.grad`, `requires_grad`, the training mode (batch norm in evaluation mode has another Hessian than the one trained on).
"""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves the training of `model` bitwise as it was.

    Compiled parts run eagerly (a compiled backward cannot be differentiated), attention under the math kernel (the
    fused ones have no double backward), recurrent nets without cuDNN (same reason), `DistributedDataParallel` is
    bypassed (its reducer and buffer broadcasts belong to the training step; reducing is the caller's business).
    """
    with ExitStack() as stack:
        stack.enter_context(_random_state(model))
        stack.enter_context(_buffers(model))
        stack.enter_context(_no_parameter_hooks(model))
        stack.enter_context(_unwrapped(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it would cost seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # Under an autocast that is still open, casts made here must not be found by the training's next forward.
        torch.clear_autocast_cache()
        stack.callback(torch.clear_autocast_cache)
        yield


@contextmanager
def _random_state(model: nn.Module) -> Iterator[None]:
    """The closure starts from the current random state, and the training goes on from it as well."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in sorted({device.type for device in devices}):
            indices = [device.index or 0 for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    """Running statistics and the like, put back in place; also buffers that a forward replaces by new tensors."""
    saved = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for owner, name, buffer, value in saved:
            owner[name] = buffer
            # Always, and without a look at the version: batch norm moves its statistics without counting it up. The
            # value is what a graph of the training may have saved, so that its version stays valid as well.
            with torch.no_grad(), _unsafe_preserve_version_counter(buffer):
                buffer.copy_(value)


@contextmanager
def _no_parameter_hooks(model: nn.Module) -> Iterator[None]:
    """Hooks registered on parameters would see each of our backwards; their (shared) tables are emptied meanwhile."""
    tables = [
        hooks for p in model.parameters() for hooks in (p._backward_hooks, p._post_accumulate_grad_hooks) if hooks
    ]
    saved = [dict(hooks) for hooks in tables]
    for hooks in tables:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, entries in zip(tables, saved, strict=True):
            hooks.update(entries)


@contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    """Calls to a `DistributedDataParallel` wrapper go straight to the module inside."""
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    for wrapper in wrappers:
        vars(wrapper)["forward"] = wrapper.module.__call__
    try:
        yield
    finally:
        for wrapper in wrappers:
            del vars(wrapper)["forward"]
