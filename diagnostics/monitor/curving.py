"""When curvature is estimated, what happens between two estimates, and what goes into the run of it.

What is held between them is said in `tracking`.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.curvature import NonFinite, TooDear, measure, slices, trained_parameters
from diagnostics.monitor import forwards
from diagnostics.monitor.accumulated import Accumulated
from diagnostics.monitor.budget import Budget
from diagnostics.monitor.guard import Guard
from diagnostics.monitor.schedule import DISPLACEMENT, Schedule
from diagnostics.monitor.sending import Writer
from diagnostics.monitor.telling import Telling
from diagnostics.monitor.together import Together
from diagnostics.monitor.tracking import Tracking
from diagnostics.monitor.update import Update

Closure = Callable[[], Any]
Whole = bool | Callable[[float], bool | None]


class Curving:
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        eigenvalues: int,
        schedule: Schedule,
        budget: Budget,
        guard: Guard,
        writer: Writer,
        together: Together,
        tell: Telling,
        tensors: Callable[[], Mapping[str, Tensor]],
        accumulated: Accumulated,
    ) -> None:
        self._model, self._optimizer, self._eigenvalues = model, optimizer, eigenvalues
        self._schedule, self._budget, self._guard = schedule, budget, guard
        self._writer, self._together, self._tell = writer, together, tell
        self._tensors, self._accumulated = tensors, accumulated
        self._tracking = Tracking()

    def project(self, update: Update) -> None:
        """Where the weights went along the last top eigenvector, for a few updates after its estimate."""
        if not update.finished or not self._tracking.projecting(update.plan.step):
            return
        with self._budget.charge("curvature"):
            parameters = trained_parameters(self._optimizer)
            update.values["top_projection"] = self._guard.run("projection", self._tracking.projection, parameters)
            update.values["top_origin"] = float(self._tracking.step)

    def after(self, update: Update, closure: Closure) -> None:
        """At the end of an update: an estimate if it is due, else one more batch for the last one."""
        step = update.plan.step
        if update.plan.curvature:
            began, first = time.perf_counter(), self._schedule.last_curvature is None
            self._guard.run("curvature", self._estimate, update, closure, self._schedule.whole_estimate())
            made = self._tracking.estimate if self._tracking.step == step else None
            whole = made is not None and made.vectors is not None
            if made and (whole or first):
                self._guard.run("slices", self._slice, update, closure)
            seconds = time.perf_counter() - began
            if made:
                self._schedule.estimated(whole, seconds, made.products)
            else:
                self._budget.cost_of("curvature", seconds)
        elif self._tracking.following() and self._affords_batch():
            self._guard.run("batches", self._follow, step, closure)
        if self._fresh_origin_due(step):
            self._tracking.mark(step, trained_parameters(self._optimizer))

    def finish(self, step: int) -> None:
        """What the last estimate's batches have shown so far; then let go of its vectors."""
        if self._tracking.following():
            self._append_batches(step, self._tracking.combined(self._accumulated.batches))
        self._tracking = Tracking()

    def _follow(self, step: int, closure: Closure) -> None:
        with self._finite_only(), forwards.quiet(self._model):
            row = self._tracking.follow(closure, self._model, self._accumulated.batches)
            self._append_batches(step, row)

    def _affords_batch(self) -> bool:
        if self._together.active:
            return bool(self._schedule.follows)
        if self._schedule.curvature_every is not None:
            return True
        return self._budget.affords("curvature", self._budget.latest["curvature"] / 8)

    def _fresh_origin_due(self, step: int) -> bool:
        """About ten updates before the next estimate, so that its displacement is a recent one.

        One that is due but put off may come at any time; a copy of the weights every ten updates until then is dear.
        """
        tracking = self._tracking
        if tracking.estimate is None or tracking.projecting(step + 1) or step - tracking.origin_step < DISPLACEMENT:
            return False
        long_ago = step - tracking.origin_step >= 10 * DISPLACEMENT
        return self._schedule.wants_curvature(step + DISPLACEMENT) and (
            long_ago or self._schedule.affords_curvature(step)
        )

    def _estimate(self, update: Update, closure: Closure, whole: Whole) -> None:
        step, parameters = update.plan.step, trained_parameters(self._optimizer)
        if self._tracking.following():
            self._append_batches(step, self._tracking.combined(self._accumulated.batches))
        rates = [float(rate) for rate in update.learning_rates]  # a tensor rate is read here: one wait for the device
        with suppress(TooDear), self._finite_only(), forwards.quiet(self._model):
            estimate = measure(
                closure,
                self._model,
                self._optimizer,
                rates,
                times=self._accumulated.times,
                eigenvalues=self._eigenvalues,
                previous=self._tracking.estimate,
                displacement=self._tracking.displacement(parameters),
                full=whole,
                seconds=self._schedule.at_most(),
            )
            self._writer.append("curvature", step, estimate.record())
            self._schedule.last_curvature = step
            self._tracking.begin(step, estimate, parameters)
            if self._accumulated.times > 1:
                self._tell.once("curvature-note", self._accumulated.note, key="accumulated")
            for note in estimate.notes:
                self._tell.once("curvature-note", note, key=re.sub(r"[\d.]+", "", note))  # the same with other numbers

    def _slice(self, update: Update, closure: Closure) -> None:
        """The loss along the estimate's top eigenvector and along the gradient, past where the update began."""
        estimate = self._tracking.estimate
        assert estimate is not None
        with forwards.quiet(self._model):
            for row in slices(closure, self._model, estimate, self._change(update, estimate.parameters)):
                self._writer.append("slices", update.plan.step, row)

    def _change(self, update: Update, parameters: Sequence[Tensor]) -> list[Tensor | None] | None:
        """The update itself, of these parameters; `None` where it was not kept."""
        if update.change is None:
            return None
        changes = {id(t): change for t, change in zip(self._tensors().values(), update.change, strict=True)}
        return [changes.get(id(parameter)) for parameter in parameters]

    def _append_batches(self, step: int, row: Mapping[str, Any] | None) -> None:
        if row is not None:
            self._writer.append("batches", step, row)

    @contextmanager
    def _finite_only(self) -> Iterator[None]:
        """A loss that is not finite has no curvature, and that is no failure of the measurement."""
        try:
            yield
        except NonFinite as error:
            self._tell.once("measurement-failed", str(error), "curvature")
