"""The one mutable object: it follows a training loop, decides what is measured when, and sends what was measured.

Nothing here may change training: no gradient, weight, buffer, flag or random state, and no exception leaves it.
"""

import atexit
import math
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.monitor import describe, examples, forwards, nonfinite
from diagnostics.monitor.beside import Beside
from diagnostics.monitor.budget import Budget
from diagnostics.monitor.curving import Curving
from diagnostics.monitor.entrance import Entrance
from diagnostics.monitor.given import Closure, Given
from diagnostics.monitor.guard import Guard, Hooked
from diagnostics.monitor.looking import Looking
from diagnostics.monitor.reporter import Reporter
from diagnostics.monitor.resuming import Resuming
from diagnostics.monitor.scaling import Scaler
from diagnostics.monitor.schedule import Plan, Schedule
from diagnostics.monitor.sending import NAN, Record, Sender, Silent, Writer
from diagnostics.monitor.sentinel import CLEARED
from diagnostics.monitor.settings import Settings
from diagnostics.monitor.telling import Telling
from diagnostics.monitor.tensors import Tensors
from diagnostics.monitor.together import Together
from diagnostics.monitor.transfer import Courier
from diagnostics.monitor.update import Update
from diagnostics.monitor.updates import Updates
from diagnostics.monitor.wiring import Wiring
from diagnostics.run import RunWriter


class Monitor:
    """Watches one model and one optimizer; made by `diagnostics.watch`. Use as a context manager, or `close` it."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, run_dir: str, meta: Mapping[str, Any], settings: Settings
    ) -> None:
        self.model, self.optimizer, self.run_dir = model, optimizer, run_dir
        self._inner = describe.unwrap(model)
        self._compiled = describe.is_compiled(model)
        self._scaler = Scaler(settings.scaler)
        self._tensors = Tensors(self._inner, optimizer, self._changed)
        device = self._tensors.device
        self._together = Together(model, device)
        self._budget = Budget(settings.budget)
        self._tell = Telling(lambda: self._plan.step)
        self._reporter = Reporter(
            run_dir,
            settings.diagnose,
            settings.rules_version,
            settings.on_finding,
            self._tell,
            charge=lambda seconds: self._budget.add("diagnosing", seconds),
        )
        forward = settings.forward()  # may raise: no run is begun then
        self._writer: Writer = Silent()
        if self._together.writes:
            self._writer = RunWriter(
                run_dir, meta, first_step=settings.first_step, on_flush=self._reporter.on_flush_or_none()
            )
        self._tell.writer = self._writer
        first = self._writer.resumed_from + 1
        self._plan = Plan(first)
        self._closed = False
        self._guard = Guard(self._tell)
        self._schedule = Schedule(
            first,
            settings.every,
            settings.curvature_every,
            self._budget,
            self._together,
            self._tell.once,
            weights=self._tensors.numbers if device.type == "cpu" else 0,
        )
        self._courier = Courier(device)
        self._sender = Sender(self._writer, self._courier, forward, self._guard, self._tell)
        self._beside = Beside(optimizer, self._tensors.current, self._hooked, self._writer.update_meta)
        self._examples = examples.Examples(settings.examples, self._guard.run)
        self._entrance = Entrance(
            model,
            self._hooked,
            partial(self._budget.add, "measured"),
            self._scaler.scale,
            self._beside.meet,
            self._examples,
        )
        self._looking = Looking(
            model,
            self._tensors.current,
            self._entrance,
            self._guard,
            self._beside,
            self._together,
            self._writer.update_meta,
        )
        self._curving = Curving(
            model,
            optimizer,
            settings.eigenvalues,
            self._schedule,
            self._budget,
            self._guard,
            self._writer,
            self._together,
            self._tell,
            self._tensors.current,
            self._looking.accumulated,
        )
        self._given = Given(
            model,
            self._writer,
            self._tell,
            self._guard,
            self._together,
            self._beside.meet,
            affords=partial(self._budget.affords, "measured"),
        )
        self._wiring = Wiring(self._inner, optimizer, self._tell)
        self._resuming = Resuming(
            run_dir, self._writer, self._whole_tensors, self._guard, self._tell, settings.first_step is not None
        )
        self._updates = Updates(
            optimizer,
            begin=self._resuming.first_update,
            tensors=self._tensors.current,
            plan=lambda: self._plan,
            guarded=self._hooked,
            flush=self._unclosed,
            quiet=forwards.is_quiet,
            closure=lambda: self._given.has_closure is not False,
            asking=lambda: self._looking.accumulated.asking,
            scaler=self._scaler,
            together=self._together,
            replicated=isinstance(model, nn.parallel.DistributedDataParallel),
        )
        self._plan_next(first)
        atexit.register(self.close, "interrupted")

    # -- the user's interface ------------------------------------------------------------------------------------------

    def step(self, loss: Any, closure: Closure | None = None) -> None:
        """Once per optimizer update, after it. `closure` recomputes the loss of the same batch, without backward."""
        if self._closed:
            return
        with self._budget.charge("always"), self._guard("step"):
            self._step(loss, closure)

    @property
    def updated(self) -> bool:
        """Whether the optimizer made an update that `step` has not been told of."""
        return self._updates.current is not None

    def log(self, **scalars: float) -> None:
        """Any other number (validation loss, accuracy), at the current step."""
        if self._closed:
            return
        with self._guard("log"):
            numbers = {name: float(value) for name, value in scalars.items()}
            self._writer.log(self._plan.step - 1, numbers)
            self._sender.forward(self._plan.step - 1, numbers)

    def close(self, status: str = "finished") -> None:
        """Flush, sum up, and remove everything."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for part in (self._entrance.disarm, self._updates.close, self._beside.close):
            with self._guard("closing"):
                part()
        with self._budget.charge("always"):
            with self._guard("closing"):
                self._finish()
            summary = None
            if self._together.writes:
                with self._guard("summary"):
                    self._writer.flush()
                    summary = self._reporter.summary(status)
            with self._guard("closing"):
                self._writer.close(status, summary)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close("finished")
            return
        self._tell("interrupted", f"training ended with {type(error).__name__}: {error}")
        self.close("interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed")

    # -- one step ------------------------------------------------------------------------------------------------------

    def _step(self, loss: Any, closure: Closure | None) -> None:
        self._courier.collect()
        update, passes = self._updates.take()
        if update is None and passes == 0:
            self._tell.once(
                "step-without-update",
                "monitor.step was called though the optimizer made no update since the last call: nothing recorded. "
                "Call it once after each optimizer.step().",
            )
            return
        self._together.settle()
        self._budget.add("writing", self._writer.seconds - self._budget.spent["writing"])
        self._budget.updated()
        update = update or self._skipped(passes)
        try:
            self._record(update, loss, closure)
        finally:  # other processes may be waiting for the plan
            self._plan_next(update.plan.step + 1)

    def _record(self, update: Update, loss: Any, closure: Closure | None) -> None:
        closure = self._given.usable(loss, closure)
        value = self._given.loss(loss)
        record = Record(update)
        if self._updates.sentinel.cleared:
            self._tell.once("gradients-cleared", CLEARED)
        if not self._wiring.settled:
            self._guard.run("wiring", self._wiring.look, self._tensors.current(), update.late)
        if update.plan.measured and update.finished:
            self._measure(record, value, closure)
        if not self._updates.settled and nonfinite.seen(update, value):
            with self._guard("non-finite"):
                self._explain(update, loss, closure)
        self._curving.project(update)
        self._sender.send(record, value)
        if closure is not None and update.finished:
            with self._budget.charge("curvature"):
                self._curving.after(update, closure)

    def _measure(self, record: Record, loss: Any, closure: Closure | None) -> None:
        with self._budget.charge("measured"):
            self._looking.look(record, loss, closure, self._compiled)
            record.add("layers", list(self._tensors.named), record.update.layers)
            for row in self._examples.take(record.update.plan.step):
                self._writer.append("examples", record.update.plan.step, row)
        self._budget.cost_of("measured", self._budget.spent["measured"] - self._spent_before)

    def _explain(self, update: Update, loss: Any, closure: Closure | None) -> None:
        """The first number that is not finite becomes one event that says where it came from."""
        self._updates.settled = True
        tensors, states = self._tensors.current(), self._entrance.random_state
        origin = nonfinite.origin(update, loss, closure, self.model, self.optimizer, tensors, states)
        self._tell("non-finite", f"at update {update.plan.step}: {origin.message}", origin.subject, update.plan.step)

    def _skipped(self, passes: int) -> Update:
        scale = self._scaler.scale()
        suffix = "" if scale is None else f" (the gradient scaler's scale is now {float(scale):g})"
        message = f"the optimizer did not step: its gradients overflowed, or the loop left it out{suffix}"
        if self._guard.run("updates", self._updates.follow):
            message = "the optimizer did not step, but the one that it holds: from now on that one is followed"
        self._tell("skipped-step", message)
        rates = [group.get("lr", math.nan) for group in self.optimizer.param_groups]
        return Update(
            self._plan,
            learning_rates=rates,
            values={"grad_norm": NAN, "update_norm": 0.0, "micro_batches": float(passes)},
        )

    def _unclosed(self) -> None:
        """The optimizer steps again, but `monitor.step` was not called: the record is kept, without a loss."""
        update, _ = self._updates.take()
        if update is not None:
            self._budget.updated()
            self._tell.once("step-missing", "monitor.step was not called after an update: its loss is not recorded")
            self._sender.send(Record(update), NAN)
            self._plan_next(update.plan.step + 1)

    def _finish(self) -> None:
        update, _ = self._updates.take()
        if update is not None:
            self._sender.send(Record(update), NAN)
        self._courier.collect(wait=True)
        if self._examples.none_yet:
            self._tell("no-examples", examples.NONE)
        self._curving.finish(self._plan.step - 1)
        self._resuming.end(self._plan.step - 1)

    # -- small parts ---------------------------------------------------------------------------------------------------

    def _plan_next(self, step: int) -> None:
        self._spent_before = self._budget.spent["measured"]
        self._plan = Plan(step)  # whatever fails below, no step number comes twice
        self._plan = self._schedule.plan(step, closure=self._given.has_closure is not False)
        if self._plan.measured and self._tensors.renewed():
            self._wiring = Wiring(self._inner, self.optimizer, self._tell, again=True)
        self._entrance.disarm()
        # The first forward is left alone: only after it is known whether it runs compiled, and if there is a closure.
        self._compiled = self._compiled or describe.compiled_frames() > 0
        if self._plan.measured and not self._compiled and self._given.has_closure is not None:
            self._examples.ask(step)
            self._entrance.arm(observing=not (self._given.has_closure or self._guard.off("activations")))

    def _whole_tensors(self) -> list[Tensor]:
        """None where other processes take part: a rank may hold but a shard of each."""
        return [] if self._together.active else list(self._tensors.current().values())

    def _changed(self, why: str) -> None:
        self._writer.update_meta(layers=describe.layers(self._inner, self.optimizer))
        self._updates.renew()
        self._tell("layers-changed", why)

    def _hooked(self, name: str) -> Hooked:
        """Around everything that runs inside one of our hooks: charged, and never raising."""
        return Hooked(self._budget.charge(self._plan.kind), self._guard(name))
