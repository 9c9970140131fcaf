"""Sees every activation of a forward, by module or by function, and counts its units.

A `TorchFunctionMode` receives each torch function that Python calls; module hooks keep a stack of who is calling. Both
exist only inside `with observer:`. Statistics are taken at once and no activation is kept, so that in-place functions
and memory are safe. Nothing here synchronizes.
"""

import contextlib
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diagnostics import stats
from diagnostics.monitor import arguments, attention, describe, edges, functions, sequences, strangers, trained_targets
from diagnostics.monitor.acted import Acted
from diagnostics.monitor.axes import Axes
from diagnostics.monitor.compared import Comparison, compared
from diagnostics.monitor.cuts import CUTS, Cuts
from diagnostics.monitor.derivatives import Derivatives
from diagnostics.monitor.draws import Draws
from diagnostics.monitor.dropped import Dropped
from diagnostics.monitor.flattened import Flattened
from diagnostics.monitor.flow import Graph
from diagnostics.monitor.guard import Kept
from diagnostics.monitor.hook import Hook
from diagnostics.monitor.inputs import rows_scaled
from diagnostics.monitor.layer import NOTHING
from diagnostics.monitor.losses import Losses
from diagnostics.monitor.masks import Masks
from diagnostics.monitor.next_states import NextStates
from diagnostics.monitor.partners import Partners
from diagnostics.monitor.periods import Periods
from diagnostics.monitor.positions import Positions
from diagnostics.monitor.probe import active
from diagnostics.monitor.pulled import Rows
from diagnostics.monitor.restarts import Restarts
from diagnostics.monitor.running import Running
from diagnostics.monitor.shared_norms import ModuleCall, SharedNorms
from diagnostics.monitor.states import States
from diagnostics.monitor.straight import Straight
from diagnostics.monitor.terms import Comparisons
from diagnostics.monitor.units import GATE, Call
from diagnostics.monitor.views import Views


class Observer(TorchFunctionMode):
    """`with observer: closure()`, then `observer.calls()` and `observer.graph`. `seconds`: what observing took.

    The forward goes on whatever raises in what we do beside it; that is kept in `failures`, and nothing more is seen.
    """

    def __init__(
        self, model: nn.Module, asking: bool = False, inside: bool = False, bounds: dict[str, list[bool]] | None = None
    ) -> None:
        """`asking`: also what the losses are given, which one forward tells for a whole run. `inside`: opened in the
        model's own call, where its hooks are being gone through: none is added or removed. `bounds`: of each name's
        clamps in turn, whether what it is given has no gradient, as corners of boxes; known where there is a graph."""
        super().__init__()
        self._asking, self._root = asking, model if inside else None
        self._bounds, self._clamps = {} if bounds is None else bounds, Counter[str]()
        self.failures: list[Exception] = []
        self.ours = Kept(self.failures)
        self.graph = Graph({id(parameter) for parameter in model.parameters()}, asking)
        self.modules = dict(describe.unwrap(model).named_modules())
        self.autocast, self.seconds = False, 0.0
        self.loss: Any = None  # of the closure that was observed
        # Norms of one number each, whose output is their bias, and of two: which was larger is all that is left.
        self.norms_of: dict[int, list[str]] = {1: [], 2: []}
        self.comparisons: list[Comparison] = []  # of the loss, with targets
        self.made = list[trained_targets.Made]()
        self.softmax_of_one: list[str] = []  # whose output is 1, whatever it is given
        self.softmax_astray: list[str] = []  # of these, those that lie along another axis than the last
        self.strangers: list[strangers.Stranger] = []
        self.others: list[weakref.ref] = []  # and all that are not, in the loss as well, frozen ones included
        self.sequences: list[sequences.Read] = []  # of a recurrence or attention
        self.rows_scaled: list[float] = []  # of what the model is given
        self.edges_scrambled: list[int] = []
        self.edges_of_the_first: list[int] = []
        self.ends: list[sequences.Ends] = []  # shapes of what the model was given and of its answer, one a call
        self.cuts, self.losses, self.masks = Cuts(), Losses(), Masks()
        self.partners, self.running = Partners(), Running()
        self.derivatives, self.draws, self.restarts = Derivatives(), Draws(), Restarts()
        self.flattened, self.dropped, self.axes, self.rows = Flattened(), Dropped(), Axes(), Rows()
        self.views, self.with_targets, self.straight = Views(self.graph), Comparisons(), Straight()
        self.periods, states = Periods(), States()
        self.next_states, self.acted = NextStates(states), Acted(states)
        self.positions = Positions([*model.parameters(), *model.buffers()] if asking else [])
        self._followers = (
            self.axes, self.views, self.flattened, self.dropped, self.derivatives, self.positions, self.restarts,
            self.rows, self.with_targets, self.straight, self.periods, states,
            self.next_states, self.acted,
        )  # fmt: skip
        self.called = {""}  # modules that were at work; the root always is
        self.shared_norms, self._entered = SharedNorms(), 0
        self._stack: list[ModuleCall] = []  # the modules at work
        self._seen: list[Call] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "Observer":
        if self._root is not None:
            self._stack.append(ModuleCall(""))
        # hooks of each module, not global ones: a compiled module warns about those
        for name, module in self.modules.items():
            if module is self._root or isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                continue
            batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            entry = ModuleCall(describe.plain_name(name), describe.is_activation(module), batch_norm)
            self._hooks.append(module.register_forward_pre_hook(Hook(partial(self._enter_module, entry))))
            leave = Hook(self._leave_module)
            self._hooks.append(module.register_forward_hook(leave, always_call=True, with_kwargs=True))
        active().append(self)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        with contextlib.suppress(ValueError):  # entered in another thread, which an interruption ended
            active().remove(self)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def calls(self) -> list[Call]:
        """Every call, once its place is known; a name that came more than once is numbered."""
        times = Counter(call.name for call in self._seen)
        numbers: Counter[str] = Counter()
        named = []
        for index, call in enumerate(self._seen):
            name = f"{call.name}#{numbers[call.name]}" if times[call.name] > 1 else call.name
            numbers[call.name] += 1
            gated = index in self.graph.gates and call.kind.name == "sigmoid"
            named.append(replace(call, name=name, kind=GATE if gated else call.kind, hidden=index in self.graph.hidden))
        return named

    # -- who is calling --------------------------------------------------------------------------------------------

    def _enter_module(self, entry: ModuleCall, module: nn.Module, args: Any) -> None:
        self._entered += 1
        self._stack.append(entry._replace(call=self._entered))
        self.called.add(entry.name)

    def _leave_module(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self._stack:
            self._stack.pop()
        if module is self.modules[""]:
            self.ended(args, kwargs, output)

    def ended(self, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """A call of the model itself, told by whoever sees its end: here a hook, or the one that opened this."""
        with self.ours, torch._C.DisableTorchFunction():  # called from a hook, what is computed here would be observed
            self.partners.answered(output)
            if self._asking:
                given = arguments.in_order(self.modules[""], args, kwargs)
                self.ends += sequences.ends(given, output)
                self.rows_scaled = self.rows_scaled or rows_scaled(given)
                self.edges_scrambled = self.edges_scrambled or edges.scrambled(given)
                self.edges_of_the_first = self.edges_of_the_first or edges.of_the_first(given)

    def _name(self, function: str) -> str:
        if not self._stack:
            return f"loss.{function}"
        owner = self._stack[-1]
        if owner.activates:
            return owner.name or function
        return f"{owner.name}.{function}".removeprefix(".")

    # -- what is called ----------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.failures or torch._C._are_functorch_transforms_active():  # whose tensors must not outlive the transform
            return func(*args, **kwargs)
        began = time.perf_counter()
        self.autocast = self.autocast or torch._C._is_any_autocast_enabled()
        if self._asking:
            with self.ours:
                self.masks.follow(func, args, kwargs)
                if func in functions.SEQUENCES and (found := sequences.read(func, args, kwargs)) is not None:
                    self.sequences.append((self._stack[-1].name if self._stack else "loss", *found))
        if func in functions.MULTI_HEAD:
            with attention.inside_multi_head(self._attention, self.ours):
                out = self._run(func, args, kwargs)
            with self.ours:
                self._follow_cuts(func, args, kwargs, out, set())
        else:
            out = self._call(func, args, kwargs)
        self.seconds += time.perf_counter() - began
        return out

    def _run(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The call itself, which would have been made without us."""
        began = time.perf_counter()
        out = func(*args, **kwargs)
        self.seconds -= time.perf_counter() - began
        return out

    def _call(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        given, cut = None, set[int]()
        with self.ours:
            given = self._before(func, args, kwargs)
            if self._asking and func in CUTS:
                cut = self.cuts.before(args[0] if args else kwargs.get("input"))
        out = self._run(func, args, kwargs)
        with self.ours:
            self._after(func, args, kwargs, given, out)
            self._follow_cuts(func, args, kwargs, out, cut)
            self.comparisons += compared(func, args, kwargs, out)
            self.made += trained_targets.made(func, args, kwargs)
            if self._asking:
                self.losses.returned(func, args, kwargs, out)
                for each in self._followers:
                    each.follow(func, args, kwargs, out)
        return out

    def _follow_cuts(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any, cut: set[int]) -> None:
        if self._asking:
            given, results = (list(functions.tensors(some)) for some in ((*args, *kwargs.values()), (out,)))
            met = [each for each in given if self.graph.knows(each)]
            self.cuts.follow(given, results, cut, bool(met))
            self.draws.follow(func, given, results, {id(each) for each in met if each.requires_grad})

    def _before(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[stats.Kind, Tensor, bool] | None:
        """Of an activation: what it is, its input, and where that has its units."""
        if self._asking:
            self.losses.given(func, args, kwargs)
            self._meet(functions.tensors((*args, *kwargs.values())))
        kind = functions.activation(func, args, kwargs)
        if kind is None:
            return None
        x = args[0] if args else kwargs["input"]
        if not x.numel() or x.is_complex() or self._is_bound(func, x):  # nothing to count, or no region that is flat
            return None
        channels_first = self.graph.flow(x).channels_first
        return kind, x.detach().clone() if functions.in_place(func, args, kwargs) else x, channels_first

    def _is_bound(self, func: Callable, x: Tensor) -> bool:
        """Whether a clamp is no activation: nothing that is learned goes into it."""
        if func not in functions.CLAMPS:
            return False
        name = self._name(functions.spelled(func))
        known, place = self._bounds.setdefault(name, []), self._clamps[name]
        self._clamps[name] += 1
        if not torch.is_grad_enabled():
            return known[place] if place < len(known) else bool(known) and all(known)
        known[place : place + 1] = [not x.requires_grad]
        return known[place]

    def _after(self, func: Callable, args: tuple, kwargs: dict[str, Any], given: tuple | None, out: Any) -> None:
        if given is not None:
            kind, x, channels_first = given
            name, dim = functions.spelled(func), functions.dimension(kind, args, kwargs, x)
            if kind.name == "softmax" and x.numel() > x.shape[dim] == 1:
                self.softmax_of_one.append(self._name(name))
                if x.shape[-1] > 1:  # at the end of which the numbers lie that one would weigh
                    self.softmax_astray.append(self._name(name))
            self._add(self._name(name), kind, x, out, dim, channels_first)
        elif self._asking:
            if args and (count := functions.normalized(func, args, kwargs)) in self.norms_of:
                self.norms_of[count].append(self._stack[-1].name if self._stack else "loss")
            self.shared_norms.follow(func, args, kwargs, self._stack[-2:])
        if func in functions.ATTENTION:
            with torch.no_grad():
                self._attention(attention.count(*args, **kwargs))
        self.partners.follow(func, args, outside=not self._stack)
        if not self._stack:
            self.running.follow(func, args, kwargs, lambda x: self.graph.flow(x) is not NOTHING)
        if (elman := functions.ELMAN.get(func)) is not None:
            self._seen.append(Call(self._name(elman.name), elman, sequences.units(elman, out[0])))
        self.graph.follow(func, args, kwargs, out, len(self._seen) - 1 if given or elman else None)

    @torch.no_grad()
    def _add(self, name: str, kind: stats.Kind, x: Tensor, y: Tensor, dim: int, channels_first: bool) -> None:
        if not x.is_floating_point():
            x, y = x.float().reshape(1, -1), y.float().reshape(1, -1)
        if kind.name == "softmax":
            counts = stats.count_softmax(stats.softmax_rows(x, dim), stats.softmax_rows(y, dim))
        else:
            counts = stats.count_units(kind, x, y, channels_first)
        self._seen.append(Call(name, kind, counts))

    def _meet(self, tensors: Iterable[Tensor]) -> None:
        for each in tensors:
            if isinstance(each, nn.Parameter) and not self.graph.knows(each):
                self.others.append(weakref.ref(each))
                if self._stack and each.requires_grad:
                    self.strangers += strangers.met(self._stack[-1].name, each, self.modules)

    def _attention(self, counts: stats.UnitCounts | None) -> None:
        if counts is not None:
            self._seen.append(Call(self._name("attention"), stats.KINDS["softmax"], counts))

    @torch.no_grad()
    def probe(self, name: str, x: Tensor, kind: stats.Kind) -> None:
        """A hand-written activation, marked by `diagnostics.probe` where its input is at hand."""
        channels_first = self.graph.flow(x).channels_first
        y = stats.OUTPUTS[kind.name](x)
        owner = self._stack[-1].name if self._stack else "loss"
        self._add(f"{owner}.{name}".removeprefix("."), kind, x, y, -1, channels_first)
