"""What the optimizer is given and what it does, seen from its own step hooks.

The pre-hook is the one place where gradients are complete: reduced over processes, accumulated, clipped, unscaled (but
for fused optimizers under AMP, which carry their scale with them). No number is read here: everything stays a tensor
until the monitor sends it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler
from torch.optim import Optimizer

from diagnostics import stats
from diagnostics.monitor import columns, distributed, evaluated, transfer
from diagnostics.monitor.change import copies, differences
from diagnostics.monitor.distributed import is_dtensor, local
from diagnostics.monitor.downhill import Downhill
from diagnostics.monitor.left import Left, gradient_versions, writes
from diagnostics.monitor.pairs import Pairs
from diagnostics.monitor.rewrites import Rewrites
from diagnostics.monitor.scaling import Scaler
from diagnostics.monitor.schedule import Plan
from diagnostics.monitor.sentinel import Sentinel
from diagnostics.monitor.together import Together
from diagnostics.monitor.update import Update

SAME = 1e-3  # of a norm: more than what half precision rounds, less than what matters


class Updates:
    """Hooks of one optimizer. `begin()`: before the first update; `plan()`: what the next is measured for; `guarded`
    swallows our own errors; `asking()`: whether what several passes add up is still to be found."""

    def __init__(
        self,
        optimizer: Optimizer,
        begin: Callable[[], None],
        tensors: Callable[[], dict[str, Tensor]],
        plan: Callable[[], Plan],
        guarded: Callable[[str], Any],
        flush: Callable[[], None],
        quiet: Callable[[], bool],
        closure: Callable[[], bool],
        asking: Callable[[], bool],
        scaler: Scaler,
        together: Together,
        replicated: bool,
    ) -> None:
        self.current: Update | None = None
        self.settled = False  # the first number that is not finite has been explained
        self.sentinel = Sentinel(self._backward_finished, quiet, replicated, guarded, self._parts_wanted)
        self._optimizer, self._begin, self._tensors, self._plan = optimizer, begin, tensors, plan
        self._closure, self._asking = closure, asking
        self._guarded, self._flush, self._scaler, self._together = guarded, flush, scaler, together
        self._after_backward: tuple[list[tuple[int, Any]], Tensor | None] | None = None  # gradient versions, norms
        self._mask: tuple[dict[str, Tensor], tuple[bool, ...]] | None = None
        self._sharded = False
        self._clips: bool | None = None  # gradients were written to between the last backward and its update
        self._pairs, self._downhill, self._rewrites = Pairs(), Downhill(), Rewrites()
        self._gradient_after: tuple[Tensor, int, int] | None = None  # one, its version, backward passes
        self._expected = 1  # backward passes of an update, as seen at the last one
        self._hooks = self._hooked(optimizer)
        self._written: int | None = writes(tensors().values())  # until the first step
        self._choose_sentinel()

    def close(self) -> None:
        self.sentinel.detach()
        for hook in self._hooks:
            hook.remove()
        self._pairs, self._downhill, self._rewrites = Pairs(), Downhill(), Rewrites()
        self._after_backward = None

    def follow(self) -> bool:
        """Where the optimizer has made no step yet, but one that it holds has (SAM's first and second step), that one
        is followed from now on."""
        inner = next((each for each in vars(self._optimizer).values() if isinstance(each, Optimizer)), None)
        if inner is None or self._written in (None, writes(self._tensors().values())):
            return False
        for hook in self._hooks:
            hook.remove()
        self._hooks = self._hooked(inner)
        return True

    def _hooked(self, optimizer: Optimizer) -> list[Any]:
        return [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def renew(self) -> None:
        """The tensors are others now: what was kept of the last ones fits no more."""
        self._pairs, self._rewrites = Pairs(), Rewrites()

    def take(self) -> tuple[Update | None, int]:
        """The update finished since the last call, if any, and the number of backward passes seen."""
        update, passes = self.current, self.sentinel.passes
        if update is not None and self._gradient_after is not None:
            gradient, version, before = self._gradient_after
            update.late = gradient if gradient._version > version and passes == before else None
        self.current = self._gradient_after = None
        self.sentinel.reset()
        return update, passes

    # -- hooks -------------------------------------------------------------------------------------------------------

    @_disable_dynamo  # a compiled `optimizer.step` calls this, and does not trace it
    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple | None:
        with self._guarded("gradients"):
            if self.current is not None and self.current.finished:
                self._flush()  # `monitor.step` was not called for the last update: its record is kept all the same
            if self._written is not None:
                self._begin()
            self.current = update = Update(self._plan())
            update.learning_rates = [_rate(group.get("lr", math.nan)) for group in optimizer.param_groups]
            update.values |= self._rewrites.before(update.plan.step)
            if update.plan.measured or update.plan.partner or update.plan.curvature:
                names = self._tensors()
                update.before = copies(names.values(), self._optimized(names))
            _, given, *others = (*args, None)  # the optimizer itself is the first of them
            closure = given if callable(given) else kwargs.get("closure")
            if not callable(closure):
                self._gradients(update)
                return None
            closure = evaluated.watched(
                closure,
                update,
                list(self._tensors().values()),
                self._gradients,
                self.sentinel,
                self._guarded,
                carries=isinstance(optimizer, torch.optim.LBFGS),
            )
            return (
                ((optimizer, closure, *others[:-1]), kwargs)
                if callable(given)
                else (args, kwargs | {"closure": closure})
            )
        return None

    @torch.no_grad()
    def _gradients(self, update: Update) -> None:
        self._together.settle()
        self._scaler.look()
        names = self._tensors()
        gradients = [tensor.grad for tensor in names.values()]
        optimized = self._optimized(names)
        scale = getattr(self._optimizer, "grad_scale", None)  # a fused optimizer unscales within its step
        found_inf = getattr(self._optimizer, "found_inf", None)  # set also where the loop has unscaled by itself
        if found_inf is not None:
            update.values["found_inf"] = found_inf
        if update.plan.measured:
            norm = self._layer_gradients(update, names, gradients, scale)
        else:
            norm = self._whole_norm(gradients, optimized)
            norm = norm if scale is None else norm / scale.to(norm)
        on_host = transfer.on_host(norm.device)
        if update.plan.measured and (scaled_by := self._scaler.scale()) is not None:
            update.values["loss_scale"] = scaled_by.clone()  # which the scaler changes in place
        update.values["grad_norm"] = norm if update.plan.measured or not on_host else norm.item()
        if self.sentinel.parts is not None:
            update.accumulated = self.sentinel.parts.at_step(self._scaler.scale())
        update.values |= self._backward_values(update.values["grad_norm"], optimized)
        if update.plan.measured or update.plan.partner:
            whole = update.values.get("grad_norm_unclipped")
            self._downhill.received(list(names.values()), whole, update.values["grad_norm"])
            update.values |= self._pairs.gradient(update.plan.step, gradients, list(names.values()), scale)
        if self.sentinel.passes == 0:
            self._choose_sentinel()
        if on_host and not self.settled and found_inf is None:
            self._rescue(update, names)

    def _whole_norm(self, gradients: list[Tensor | None], optimized: tuple[bool, ...]) -> Tensor:
        """Over the optimizer's parameters, by as few operations as the gradients allow."""
        own = [g for g, mine in zip(gradients, optimized, strict=True) if mine and g is not None]
        if own and distributed.are_plain(own):
            return stats.total_norm(own)
        return _total(self._norms(gradients), optimized)

    def _layer_gradients(
        self, update: Update, names: dict[str, Tensor], gradients: list[Tensor | None], scale: Tensor | None
    ) -> Tensor:
        """The norm of each gradient, and of those together that the optimizer has."""
        squares = self._norms(gradients)
        if scale is not None:
            squares = squares / scale.to(squares.device, squares.dtype).square()
        update.layers |= columns.of_gradients(names, gradients, squares, self._together.active)
        return _total(squares, self._optimized(names))

    def _rescue(self, update: Update, names: dict[str, Tensor]) -> None:
        """On a CPU a number may be read at once: keep the last finite weights, to find where it went wrong."""
        if math.isfinite(float(update.values["grad_norm"])):
            return
        gradients = {name: tensor.grad for name, tensor in names.items() if tensor.grad is not None}
        update.bad_gradients = [name for name, g in gradients.items() if not torch.isfinite(local(g)).all()]
        update.rescued = [tensor.detach().clone() for tensor in names.values()]

    def _optimized(self, names: dict[str, Tensor]) -> tuple[bool, ...]:
        """Which tensors are the optimizer's; made anew only when the tensors are others."""
        if self._mask is None or self._mask[0] is not names:
            inside = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
            self._mask = (names, tuple(id(tensor) in inside for tensor in names.values()))
            self._sharded = any(map(distributed.is_sharded, names.values()))
        return self._mask[1]

    def _backward_values(self, received: Tensor | float, optimized: tuple[bool, ...]) -> dict[str, Any]:
        passes = self.sentinel.passes
        self._expected = max(1, passes)
        micro_batches = math.nan if self._sharded else float(passes)  # FSDP2 hides all passes but the last
        values: dict[str, Any] = {"micro_batches": micro_batches, "carried_grad_norm": self.sentinel.carried}
        if self._after_backward is not None:
            versions, squares = self._after_backward
            self._clips = versions != gradient_versions(self._tensors().values())
            norm = None if squares is None else self._unscaled(_total(squares, optimized))
            if norm is not None and transfer.on_host(norm.device):  # writes through `.data` are not counted
                self._clips |= bool((norm - received).abs() > SAME * norm)
            if not self._clips:
                values["grad_norm_unclipped"] = received  # nobody wrote to the gradients in between
            elif norm is not None:
                values["grad_norm_unclipped"] = norm
        self._after_backward = None
        return values

    def _unscaled(self, norm: Tensor) -> Tensor:
        return norm if (scale := self._scaler.scale()) is None else norm / scale.to(norm.device, norm.dtype)

    def _backward_finished(self) -> None:
        """After a backward pass, before clipping: norms are taken only where clipping was seen or is looked for.

        Of an accumulation only the last pass is worth it. (A scaler unscales without counting its writes.)
        """
        if self.sentinel.passes < self._expected:
            return
        with self._guarded("unclipped gradient"):
            tensors = self._tensors().values()
            squares = None
            if self._clips or self._plan().measured:
                with torch.no_grad():
                    squares = self._norms([t.grad for t in tensors])
            self._after_backward = (gradient_versions(tensors), squares)
            if self._clips is not False and self._expected == 1 and self._plan().measured and not self._sharded:
                self._downhill.keep(list(tensors))

    def _parts_wanted(self) -> bool:
        return self._plan().measured and self._asking() and self._closure() and not self._together.active

    def _norms(self, tensors: Sequence[Tensor | None], like: Sequence[Tensor] | None = None) -> Tensor:
        self._together.settle()
        return distributed.squared_norms(tensors, like, self._together.active)

    @_disable_dynamo
    def _after(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        update = self.current
        if update is None or update.finished:  # of a step that calls its base class's, the inner one is the update
            return
        update.finished, self._written = True, None
        with self._guarded("updates"):
            if "grad_norm" not in update.values:
                self._gradients(update)
            gradient = self.sentinel.gradient
            if gradient is not None and not is_dtensor(gradient):
                self._gradient_after = (gradient, gradient._version, self.sentinel.passes)
            if update.before is not None:
                self._changes(update, update.before)
            self._rewrites.after(update.plan.step, self._tensors())

    @torch.no_grad()
    def _changes(self, update: Update, before: list[Tensor | None]) -> None:
        tensors = self._tensors()
        after = [local(tensor).detach() for tensor in tensors.values()]
        change = update.change = differences(before, after)
        update.before = None
        moved, weights = self._norms(change, list(tensors.values())), self._norms(after, list(tensors.values()))
        update.values |= {"update_norm": moved.sum().sqrt(), "weight_norm": weights.sum().sqrt()}
        if update.plan.measured:
            update.layers |= {"update_norm": moved.sqrt(), "weight_norm": weights.sqrt()}
            update.layers |= columns.lost(self._optimizer, list(tensors.values()), change, moved.device)
        update.values |= columns.remembered(self._optimizer)
        found, update.slope = self._pairs.change(update.plan.step, change, after, keep=update.plan.measured)
        update.values |= found
        update.downhill = self._downhill.slope(change, update.slope, self._scaler.scale())
        update.left = Left(list(tensors.values())) if update.plan.measured and self._closure() else None
        slopes = {} if self._sharded else {"slope": update.slope, "downhill": update.downhill}
        update.values |= {name: slope for name, slope in slopes.items() if slope is not None}

    # -- sentinel ------------------------------------------------------------------------------------------------------

    def _choose_sentinel(self) -> None:
        """The last parameter that gets gradients: the output layer's takes part in every backward pass."""
        trained = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        with_gradient = [p for p in trained if p.grad is not None]
        for parameter in (with_gradient or trained)[-1:]:
            self.sentinel.attach(parameter)


def _total(squares: Tensor, optimized: tuple[bool, ...]) -> Tensor:
    """Norm over the optimizer's parameters; another optimizer's have gradients too."""
    counted = squares if all(optimized) else torch.where(distributed.constant(optimized, squares.device), squares, 0)
    return counted.sum().sqrt()


def _rate(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return math.nan if value is None else float(value)  # of an optimizer that finds its own
