"""What a measured update shows of the model: its units, how many differ, what its first layer reads, overshoot.

With a closure everything comes from one extra forward after the update; without one, from the training forward.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import stats
from diagnostics.monitor import (
    describe,
    dropping,
    ending,
    forwards,
    once,
    order,
    strangers,
    symmetry,
    transfer,
)
from diagnostics.monitor.accumulated import Accumulated
from diagnostics.monitor.averaged import Averaged
from diagnostics.monitor.beside import Beside
from diagnostics.monitor.class_weights import ClassWeights
from diagnostics.monitor.compared import Compared
from diagnostics.monitor.components import Components
from diagnostics.monitor.distributed import is_dtensor
from diagnostics.monitor.elastic import Elastic
from diagnostics.monitor.entrance import Entrance
from diagnostics.monitor.frozen import Frozen
from diagnostics.monitor.guard import Guard
from diagnostics.monitor.inputs import Inputs, beside
from diagnostics.monitor.observe import Observer
from diagnostics.monitor.ordered import Ordered
from diagnostics.monitor.overshoot import Overshoot
from diagnostics.monitor.placed import Maps, Placed
from diagnostics.monitor.pulled import Distances, Pulled
from diagnostics.monitor.sending import Record
from diagnostics.monitor.terms import Calls, Terms
from diagnostics.monitor.together import Together
from diagnostics.monitor.trained_targets import TrainedTargets
from diagnostics.monitor.units import Call, Units

Closure = Callable[[], Any]
SEEN = 2  # looks before a model counts as never called: at the first its forward is left alone
TRIES = 3  # updates after which weights that began as zeros have let a gradient through


class Looking:
    def __init__(
        self,
        model: nn.Module,
        tensors: Callable[[], Mapping[str, Tensor]],
        entrance: Entrance,
        guard: Guard,
        beside: Beside,
        together: Together,
        note: Callable[..., None],
    ) -> None:
        """`note`: what is found once is written with the run."""
        self._note, self.accumulated = note, Accumulated(note)
        self._beside = beside
        self._model, self._tensors, self._entrance = model, tensors, entrance
        self._guard, self._together = guard, together
        self._compared, self._averaged = Compared(), Averaged()
        self._class_weights, self._trained_targets = ClassWeights(), TrainedTargets()
        self._pulled, self._terms, self._placed = Pulled(), Terms(), Placed()
        self._ordered = Ordered()
        self._components: Components | None = guard.run("symmetry", Components, describe.unwrap(model))
        self._elastic: Elastic | None = guard.run("elasticity", Elastic, model)
        self._units, self._inputs, self._overshoot = Units(), Inputs(), Overshoot()
        self._strangers: list[strangers.Stranger] = []
        self._training: bool | None = None  # the mode of the model, as far as is noted
        self._frozen: Frozen | None = None
        self._looks = 0
        self._dropout = 0.0  # the largest share that is dropped
        self._ended = Counter[str]()  # how often it was asked where a gradient of zero ends: of some weights, of all

    def look(self, record: Record, loss: Any, closure: Closure | None, compiled: bool) -> None:
        """Fill the tables `units`, `symmetry`, `terms`, `placements` and `inputs` of one record, and scalars."""
        self._guard.run("mode", self._look_at_mode, record.update.plan.step)
        self._guard.run("strangers", self._look_for_strangers)
        self._guard.run("frozen weights", self._look_at_frozen)
        self._guard.run("elasticity", self._look_at_own, record)
        observers = list(self._entrance.observers)
        if closure is not None:
            observer = self._guard.run("activations", self._observe, record, loss, closure, compiled)
            observers = [] if observer is None else [observer]
        for failure in [failure for observer in observers for failure in observer.failures[:1]]:
            self._guard.failed("activations", failure)
        observers = [observer for observer in observers if not observer.failures]
        self._guard.run("targets", self._look_at_targets, record, loss, observers if closure is not None else [])
        if closure is not None and not compiled and not self._together.active:
            self._guard.run("the mean answer", self._look_at_mean, record, closure, observers)
            if self._dropout >= dropping.MUCH:
                self._guard.run("dropout", self._look_at_dropout, record, closure)
        calls = self._calls(observers)
        self._guard.run("units", self._look_at_units, record, calls)
        if observers and self._entrance.asking:
            self._guard.run("what is told once", self._look_once, observers, compiled)
            self._guard.run("the inputs' order", self._look_at_order, observers[0].graph.outside.first)
            self._guard.run("crowded inputs", self._look_at_crowds, observers[0].graph.outside.first)
            self._guard.run("inputs of later layers", self._look_beside, observers[-1])
        for observer in observers[-1:]:  # of several micro-batches the last one stands for all
            self._guard.run("symmetry", self._look_at_weights, record, observer)
            self._guard.run("inputs", self._look_at_input, record, observer)
            self._guard.run("partners", self._look_at_partners, record, observer)
        if closure is not None and not self._together.active:  # parts of a backward that others wait for
            self._guard.run("ending", self._look_where_it_ends, record, closure)
            self._guard.run("pairs", self._look_at_pairs, observers, closure)
            if not compiled:
                self._guard.run("order", self._look_at_order_read, record, closure)
                self._guard.run("terms", self._look_at_terms, record, observers, closure)
                self._guard.run("placements", self._look_at_placements, record, observers, closure)

    def _look_once(self, observers: list[Observer], compiled: bool) -> None:
        self._entrance.asking = False
        called = set[str]().union(*(observer.called for observer in observers))
        self._frozen = Frozen(describe.unwrap(self._model), called)
        self._strangers = [each for one in observers for each in strangers.made(one.strangers, one.modules)]
        others = [each() for observer in observers for each in observer.others]
        self._beside.meet(each for each in others if each is not None)
        self._note(frozen_random=self._frozen.names)
        # modules inside a compiled one may be at work unseen
        idle = [] if compiled else [name for name in self._tensors() if name.rpartition(".")[0] not in called]
        weights = self._class_weights.told(each for one in observers for each in one.losses.weighted)
        found = once.told(observers, self._tensors())
        self._dropout = found["dropout"]
        self._ordered.meet(found["runs_along"])
        self._note(idle=idle, class_weights=weights, **found)

    def _look_at_order(self, x: Tensor | None) -> None:
        if x is not None and not x.is_nested:
            shape = order.meant(x)
            self._note(input_order=[] if shape is None else [shape, tuple(x.shape)])

    def _look_at_crowds(self, x: Tensor | None) -> None:
        if x is not None and not x.is_nested and x.numel():
            self._note(crowded=self._inputs.crowded(x))

    def _look_beside(self, observer: Observer) -> None:
        self._note(inputs_beside=list(beside(observer.graph.outside, self._tensors())))

    def _look_at_mode(self, step: int) -> None:
        """A model that goes over to evaluation mode, begins in it with norms that saw no batch, or is never called."""
        training, before = self._entrance.training, self._training
        if training is None and self._looks == SEEN and self._entrance.armed:
            self._note(never_called=True)
        if training is None or training is before:
            return
        self._training = training
        held = [] if training else describe.held_in_evaluation(self._model, untouched=before is None)
        if held or before is False:
            self._note(evaluation={"step": step, "modules": held} if held else {})

    def _look_at_frozen(self) -> None:
        """Seldom, since each look waits for the device."""
        self._looks += 1
        if self._frozen is not None and self._looks.bit_count() == 1 and self._frozen.changed():
            self._note(frozen_random=self._frozen.names)

    def _look_at_own(self, record: Record) -> None:
        if self._elastic is not None:
            record.update.layers |= self._elastic.columns(self._tensors())

    def _look_for_strangers(self) -> None:
        gone, self._strangers = strangers.gone(self._strangers), []
        if gone:
            self._note(made_in_forward=gone)

    def _look_at_targets(self, record: Record, loss: Any, observers: list[Observer]) -> None:
        """`observers`: of closures."""
        answers = self._entrance.answers
        made = [each for observer in observers for each in observer.made]
        found = answers.columns(loss) | self._trained_targets.columns(made)
        for observer in observers:
            self._compared.meet(observer.comparisons, observer.ends)
            if answers.fruitless:
                inputs = observer.graph.outside.first
                found = self._compared.columns(observer.comparisons, inputs, observer.loss) | found
            observer.comparisons, observer.made = [], []
        if generated := self._entrance.generated.columns():
            self._note(generated_by=self._entrance.generated.function)
        record.update.values.update(found | generated)

    def _look_at_mean(self, record: Record, closure: Closure, observers: list[Observer]) -> None:
        """Where no form of loss is known that would tell what the same answer to every input costs."""
        answers, states = self._entrance.answers, self._entrance.random_state
        known = answers.of_whole_loss or self._compared.of_whole_loss
        if (answers.fruitless or answers.settled) and not known and observers and self._averaged.due():
            inputs, part_known = observers[-1].graph.outside.first, not answers.fruitless
            record.update.values.update(self._averaged.columns(self._model, closure, states, inputs, part_known))

    def _look_at_dropout(self, record: Record, closure: Closure) -> None:
        record.update.values.update(dropping.columns(self._model, closure, self._entrance.random_state))

    def _look_at_partners(self, record: Record, observer: Observer) -> None:
        record.update.values.update(observer.partners.columns() | observer.running.columns())

    def _look_where_it_ends(self, record: Record, closure: Closure) -> None:
        """Of weights whose gradient is exactly zero, and again when it is that of all; where the norms are read without
        waiting for a device."""
        norms = record.update.layers.get("grad_norm")
        if norms is None or not transfer.on_host(norms.device):
            return
        pairs = zip(self._tensors().values(), norms.tolist(), strict=True)
        silent = [parameter for parameter, norm in pairs if norm == 0]
        which = "all" if len(silent) == len(norms) else "some"
        if not silent or self._ended[which] >= TRIES:
            return
        ends = ending.ends(closure, self._model, silent, self._entrance.random_state)
        self._ended[which] = TRIES if ends else self._ended[which] + 1
        if ends:
            self._note(gradient_ends=ends)

    def _look_at_pairs(self, observers: list[Observer], closure: Closure) -> None:
        if observers and self._pulled.due(observers[-1].rows):
            with forwards.ours(self._model, closure), torch.enable_grad(), Distances() as seen:
                self._pulled.meet(seen.apart(closure()))
            self._note(pulled=[list(each) for each in self._pulled.found])

    def _look_at_terms(self, record: Record, observers: list[Observer], closure: Closure) -> None:
        if observers and self._terms.due(record.update.plan.step, observers[-1].with_targets.count):
            with forwards.ours(self._model, closure), torch.enable_grad():
                with Calls() as calls:
                    loss = closure()
                weights = [each for each in self._tensors().values() if each.requires_grad]
                record.add("terms", *self._terms.rows(loss, calls.seen, weights))

    def _look_at_order_read(self, record: Record, closure: Closure) -> None:
        if self._ordered.due(record.update.plan.step):
            columns = self._ordered.columns(self._model, closure, self._entrance.random_state)
            record.update.values.update(columns)

    def _look_at_placements(self, record: Record, observers: list[Observer], closure: Closure) -> None:
        x = observers[-1].graph.outside.first if observers else None
        if x is not None and self._placed.due(record.update.plan.step, x):
            with forwards.ours(self._model, closure), torch.enable_grad(), Maps() as maps:
                closure()
            record.add("placements", *self._placed.rows(x, maps.found))

    def _look_at_units(self, record: Record, calls: list[Call]) -> None:
        record.add("units", *self._units.rows(calls))

    def _look_at_weights(self, record: Record, observer: Observer) -> None:
        own = self._components.rows() if self._components is not None else ()
        record.add("symmetry", *symmetry.rows(observer.graph.layers, describe.unwrap(self._model), own))

    def _calls(self, observers: list[Observer]) -> list[Call]:
        """Calls of all micro-batches and processes. The sum over processes is reached whatever failed before."""
        calls = self._guard.run("units", lambda: Units.merged([observer.calls() for observer in observers]))
        if self._together.active:
            calls = self._together.add(calls)
        return calls or []

    def _observe(self, record: Record, loss: Any, closure: Closure, compiled: bool) -> Observer:
        states, parameters = self._entrance.random_state, list(self._tensors().values())
        asking = self._entrance.asking
        observer, after, drew, drew_own = forwards.observe(
            closure, self._model, states, asking, asking and self._alone(parameters), self._entrance.bounds
        )
        # the same dropout masks are drawn again only from the same state, and eagerly as before
        replayed = not drew or (states is not None and not compiled)
        comparable = replayed and not drew_own and self._together.size == 1
        ratio = partial(
            self._overshoot.ratio,
            record.update,
            loss,
            after,
            comparable=comparable,
            again=lambda weights: forwards.loss_at(weights, parameters, closure, self._model, states),
            parameters=parameters,
            coarse=observer.autocast,
        )
        record.update.values["overshoot"] = self._guard.run("overshoot", ratio)
        parts, change = record.update.accumulated, record.update.change
        if self.accumulated.asking and parts is not None and change is not None:
            at = partial(self._gradient_before, change, parameters, closure, states)
            batches = self._entrance.answers.batches
            self._guard.run("accumulation", self.accumulated.look, parts, at, loss, after, batches)
        return observer

    def _gradient_before(
        self, change: list[Tensor], parameters: list[Tensor], closure: Closure, states: Any, of: Tensor
    ) -> Tensor | None:
        """The closure's, at the weights before the update, for one of them."""
        old = list(stats.foreach._foreach_sub([p.detach() for p in parameters], change))
        return forwards.gradient_at(old, parameters, closure, self._model, states, of)

    def _alone(self, parameters: list[Tensor]) -> bool:
        """No wrapper that gathers gradients, and counts on a backward after every forward with a graph."""
        wrapped = isinstance(self._model, nn.parallel.DistributedDataParallel)
        return self._together.size == 1 and not wrapped and not any(map(is_dtensor, parameters))

    def _look_at_input(self, record: Record, observer: Observer) -> None:
        x = observer.graph.outside.first
        if x is not None and not x.is_nested and x.numel():
            record.add("inputs", *self._inputs.rows(x))
