"""Run extra forwards and backwards of a model in training without leaving a trace, and so that they can be
differentiated twice.

Restored: random state (torch on every device in use, NumPy, Python, generators that the closure or a module holds);
buffers, parameters and plain attributes of every module that runs; hooks on backward passes. Never touched: `.grad`,
`requires_grad`, the training mode (batch norm in evaluation mode has another Hessian than the one trained on). Not
seen: counters and tensors of the closure that belong to no module, and what lies outside of the process.
"""

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from diagnostics.curvature.entered import put_back
from diagnostics.curvature.generators import generators_of


@contextmanager
def undisturbed(
    model: nn.Module, closure: Callable[[], Any] | None = None, also: Iterable[Tensor] = ()
) -> Iterator[None]:
    """Whatever runs inside leaves the training of `model` bitwise as it was.

    Compiled parts run eagerly (a compiled backward cannot be differentiated), attention under the math kernel (the
    fused ones have no double backward), recurrent nets without cuDNN (same reason), `DistributedDataParallel` is
    bypassed (its reducer and buffer broadcasts belong to the training step; reducing is the caller's business).
    `closure`: what will run, to look for generators in; `also`: parameters that are differentiated by beside the
    model's, as of a loss that learns.
    """
    # Once: a walk through them is what an evaluation of a small model waits for. Their items' types are not said below:
    # tests check them on items that they draw, from a generator whose state is kept here.
    modules = list(model.modules())
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    own = {id(p) for p in parameters}
    parameters += [p for p in also if id(p) not in own]
    with ExitStack() as stack:
        stack.enter_context(_random_state(parameters))
        stack.enter_context(put_back(modules, stack.enter_context(generators_of(closure))))
        stack.enter_context(_no_backward_hooks(modules, parameters))
        stack.enter_context(_unwrapped(modules))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in modules):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it would cost seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Using `torch.compile.*global hooks")  # ours is meant to see both
        # Under an autocast that is still open, casts made here must not be found by the training's next forward.
        torch.clear_autocast_cache()
        stack.callback(torch.clear_autocast_cache)
        yield


@contextmanager
def _random_state(parameters: list) -> Iterator[None]:
    """The closure starts from the current random state, and the training goes on from it as well."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = {p.device for p in parameters if p.device.type not in ("cpu", "meta")}
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
def _no_backward_hooks(modules: list, parameters: list) -> Iterator[None]:
    """Hooks on parameters and modules would see each of our backwards, and keep what they see (as Opacus keeps the
    gradient of each example); their (shared) tables are emptied meanwhile."""
    tables = [hooks for p in parameters for hooks in (p._backward_hooks, p._post_accumulate_grad_hooks) if hooks]
    tables += [hooks for m in modules for hooks in (m._backward_hooks, m._backward_pre_hooks) if hooks]
    saved = [dict(hooks) for hooks in tables]
    for hooks in tables:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, entries in zip(tables, saved, strict=True):
            hooks.update(entries)


@contextmanager
def _unwrapped(modules: list) -> Iterator[None]:
    """Calls to a `DistributedDataParallel` wrapper go straight to the module inside."""
    wrappers = [module for module in modules if isinstance(module, DistributedDataParallel)]
    for wrapper in wrappers:
        vars(wrapper)["forward"] = wrapper.module.__call__
    try:
        yield
    finally:
        for wrapper in wrappers:
            del vars(wrapper)["forward"]
