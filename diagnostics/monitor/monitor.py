"""The one mutable object: it follows a training loop, decides what is measured when, and sends what was measured.

Nothing here may change training: no gradient, weight, buffer, flag or random state, and no exception leaves it.
"""

import atexit
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diagnostics.curvature import CurvatureError, measure, trained_parameters
from diagnostics.monitor import describe, forwards, inputs, losspath, nonfinite, symmetry
from diagnostics.monitor.budget import Budget
from diagnostics.monitor.forwards import Entrance
from diagnostics.monitor.guard import Guard
from diagnostics.monitor.observe import Observer
from diagnostics.monitor.overshoot import Overshoot
from diagnostics.monitor.reporter import Reporter, forwarder
from diagnostics.monitor.schedule import DISPLACEMENT, Plan, Schedule
from diagnostics.monitor.tracking import Tracking
from diagnostics.monitor.transfer import Courier
from diagnostics.monitor.units import Units
from diagnostics.monitor.updates import Update, Updates
from diagnostics.monitor.wiring import Wiring
from diagnostics.run import RunWriter

NAN = float("nan")
Closure = Callable[[], Any]


class Monitor:
    """Watches one model and one optimizer; made by `diagnostics.watch`. Use as a context manager, or `close` it."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        run_dir: str,
        meta: Mapping[str, Any],
        *,
        every: int,
        curvature_every: int | None,
        eigenvalues: int,
        budget: float,
        first_step: int | None,
        scaler: Any,
        on_finding: Callable[[Any], None] | None,
        forward_to: Any,
        diagnose: Callable[[Any], Any] | None,
        rules_version: str,
    ) -> None:
        self.model, self.optimizer, self.run_dir = model, optimizer, run_dir
        self._inner = describe.unwrap(model)
        self._compiled, self._frames = describe.is_compiled(model), describe.compiled_frames()
        self._eigenvalues, self._scaler = eigenvalues, scaler
        self._forward = forwarder(forward_to) if forward_to is not None else None
        self._reporter = Reporter(run_dir, diagnose, rules_version, on_finding, self._event)
        self._writer = RunWriter(run_dir, meta, first_step=first_step, on_flush=self._reporter.on_flush)
        first = self._writer.resumed_from + 1
        self._once: set[str] = set()
        self._guard = Guard(self._event)
        self._budget = Budget(budget)
        self._schedule = Schedule(first, every, curvature_every)
        self._plan = Plan(first)
        self._tensors = describe.named_tensors(self._inner, optimizer)
        self._courier = Courier(_device(self._tensors))
        self._units, self._inputs, self._tracking = Units(), inputs.Inputs(), Tracking()
        self._overshoot = Overshoot()
        self._wiring = Wiring(self._inner, optimizer, self._event)
        self._entrance = Entrance(model, self._hooked)
        self._has_closure: bool | None = None
        self._closed = False
        self._updates = Updates(
            optimizer,
            tensors=self._current_tensors,
            plan=lambda: self._plan,
            guarded=self._hooked,
            flush=self._unclosed,
            quiet=forwards.is_quiet,
            scale=self._scale,
            reduced=isinstance(model, nn.parallel.DistributedDataParallel),
        )
        if self._writer.resumed_from:
            self._event("resumed", f"continues after update {first - 1}", "")
        self._plan_next(first)
        atexit.register(self.close, "interrupted")

    # -- the user's interface ------------------------------------------------------------------------------------------

    def step(self, loss: Any, closure: Closure | None = None) -> None:
        """Once per optimizer update, after it. `closure` recomputes the loss of the same batch, without backward."""
        if self._closed:
            return
        with self._budget.charge("always"), self._guard("step"):
            self._step(loss, closure)

    def log(self, **scalars: float) -> None:
        """Any other number (validation loss, accuracy), at the current step."""
        if self._closed:
            return
        with self._guard("log"):
            numbers = {name: float(value) for name, value in scalars.items()}
            self._writer.log(self._plan.step - 1, numbers)
            if self._forward:
                self._forward(self._plan.step - 1, numbers)

    def close(self, status: str = "finished") -> None:
        """Flush, sum up, and remove everything."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._entrance.disarm()
        self._updates.close()
        with self._guard("closing"):
            self._finish()
        summary = None
        with self._guard("summary"):
            self._writer.flush()
            summary = self._reporter.summary()
        self._writer.close(status, summary)
        self._tracking = Tracking()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close("finished")
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            self._event("interrupted", f"training was interrupted by {type(error).__name__}", "")
            self.close("interrupted")
        else:
            self._event("interrupted", f"training ended with {type(error).__name__}: {error}", "")
            self.close("failed")

    # -- one step ------------------------------------------------------------------------------------------------------

    def _step(self, loss: Any, closure: Closure | None) -> None:
        self._courier.collect()
        update, passes = self._updates.take()
        if update is None and passes == 0:
            self._tell_once(
                "step-without-update",
                "monitor.step was called though the optimizer made no update since the last call: nothing recorded. "
                "Call it once after each optimizer.step().",
            )
            return
        if update is None:
            update = self._skipped()
        if self._has_closure is None:
            self._meet(loss, closure)
        value = self._loss(loss)
        record = _Record(update)
        before = dict(self._budget.spent)
        if not self._wiring.settled:
            self._wiring.look(self._current_tensors())
        if update.plan.measured and update.finished:
            with self._budget.charge("measured"):
                self._measure(record, value, closure)
            self._budget.cost_of("measured", self._budget.spent["measured"] - before["measured"])
        if not self._updates.settled and _bad(update, value):
            with self._guard("non-finite"):
                self._explain(update, value, closure)
        self._project(record)
        self._send(record, value)
        if closure is not None and update.finished:
            with self._budget.charge("curvature"):
                self._curvature(update, closure)
        self._plan_next(update.plan.step + 1)

    def _meet(self, loss: Any, closure: Closure | None) -> None:
        """The first step: is there a closure, and what lies between the model's output and its loss?"""
        self._has_closure = closure is not None
        changes: dict[str, Any] = {"closure": self._has_closure}
        with self._guard("loss path"):
            tensor = loss if isinstance(loss, Tensor) and loss.grad_fn is not None else None
            if tensor is None and closure is not None:
                with forwards.ours(self.model), torch.enable_grad():
                    tensor = closure()
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                changes |= {"loss_path": losspath.describe(tensor), "linear_model": losspath.is_linear_model(tensor)}
            elif isinstance(tensor, Tensor):
                self._event(
                    "no-graph", "the loss does not depend on any parameter: nothing can be learned from it", "loss"
                )
        self._writer.update_meta(**changes)
        if closure is None:
            self._event("no-closure", "no closure was given to monitor.step: curvature is not measured", "")

    def _loss(self, loss: Any) -> Any:
        if not isinstance(loss, Tensor):
            return float(loss)
        if loss.numel() != 1:
            self._tell_once("loss-not-scalar", f"the loss has shape {tuple(loss.shape)}: its mean is recorded")
        return loss.detach().double().mean() if loss.numel() != 1 else loss.detach().reshape(())

    def _skipped(self) -> Update:
        scale = self._scale()
        suffix = "" if scale is None else f" (the gradient scaler's scale is {float(scale):g})"
        message = f"the optimizer did not step: gradients that overflowed are skipped{suffix}"
        self._event("skipped-step", message, "", self._plan.step)
        return Update(self._plan, values={"grad_norm": NAN, "update_norm": 0.0})

    def _unclosed(self) -> None:
        """The optimizer steps again, but `monitor.step` was not called: the record is kept, without a loss."""
        update, _ = self._updates.take()
        if update is not None:
            self._tell_once("step-missing", "monitor.step was not called after an update: its loss is not recorded")
            self._send(_Record(update), NAN)
            self._plan_next(update.plan.step + 1)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _measure(self, record: "_Record", loss: Any, closure: Closure | None) -> None:
        update = record.update
        record.add("layers", list(self._tensors), update.layers)
        observers = list(self._entrance.observers)
        if closure is not None and not self._guard.off("activations"):
            with self._guard("activations"):
                observers = [self._observe(update, loss, closure)]
        for observer in observers:
            with self._guard("units"):
                record.add("units", *self._units.rows(observer.calls()))
            with self._guard("symmetry"):
                record.add("symmetry", *symmetry.rows(observer.graph.layers, self._inner))
            with self._guard("inputs"):
                x = observer.graph.first_input
                if x is not None and x.numel():
                    record.add("inputs", *self._inputs.rows(x))

    def _observe(self, update: Update, loss: Any, closure: Closure) -> Observer:
        observer, after, drew = forwards.observe(closure, self.model, self._entrance.random_state)
        with self._guard("overshoot"):
            ratio = self._overshoot.ratio(
                update,
                loss,
                after,
                comparable=not drew or (self._entrance.random_state is not None and not self._compiled),
                again=lambda weights: forwards.loss_at(
                    weights, list(self._tensors.values()), closure, self.model, self._entrance.random_state
                ),
                parameters=list(self._tensors.values()),
                coarse=observer.autocast,
            )
            update.values["overshoot"] = ratio
        return observer

    def _explain(self, update: Update, loss: Any, closure: Closure | None) -> None:
        """The first number that is not finite becomes one event that says where it came from."""
        self._updates.settled = True
        tensors = self._current_tensors()
        origin = None
        if closure is not None:
            weights = update.rescued or [tensor.data for tensor in tensors.values()]
            origin = nonfinite.search(closure, self.model, weights, tensors, self._entrance.random_state)
        if origin is None:
            origin = nonfinite.by_place(loss, update.bad_gradients)
        self._event("non-finite", f"at update {update.plan.step}: {origin.message}", origin.subject, update.plan.step)

    def _project(self, record: "_Record") -> None:
        step = record.update.plan.step
        if record.update.finished and self._tracking.projecting(step):
            with self._guard("projection"):
                record.update.values["top_projection"] = self._tracking.projection(trained_parameters(self.optimizer))
                record.update.values["top_origin"] = float(self._tracking.step)

    def _curvature(self, update: Update, closure: Closure) -> None:
        step, parameters = update.plan.step, trained_parameters(self.optimizer)
        if update.plan.curvature and not self._guard.off("curvature"):
            began = time.perf_counter()
            with self._guard("curvature"):
                self._estimate(update, closure, parameters)
            self._budget.cost_of("curvature", time.perf_counter() - began)
        elif self._tracking.following() and self._may_follow():
            with self._guard("batches"), self._quiet_failure():
                self._append_batches(step, self._tracking.follow(closure, self.model))
        if self._tracking.estimate is not None and not self._tracking.projecting(step + 1):
            self._mark(step, parameters)

    def _may_follow(self) -> bool:
        return self._schedule.curvature_every is not None or self._budget.affords(
            "curvature", self._budget.latest["curvature"] / 4
        )

    def _mark(self, step: int, parameters: list[Tensor]) -> None:
        """A fresh origin about ten updates before the next estimate, so that the displacement is a recent one."""
        if step - self._tracking.origin_step >= DISPLACEMENT and self._schedule.soon(step, DISPLACEMENT):
            self._tracking.mark(step, parameters)

    def _estimate(self, update: Update, closure: Closure, parameters: list[Tensor]) -> None:
        step = update.plan.step
        self._append_batches(step, self._tracking.combined() if self._tracking.following() else None)
        rates = [float(rate) for rate in update.learning_rates]  # a tensor rate is read here: one wait for the device
        with self._quiet_failure(), forwards.quiet():
            estimate = measure(
                closure,
                self.model,
                self.optimizer,
                rates,
                eigenvalues=self._eigenvalues,
                previous=self._tracking.estimate,
                displacement=self._tracking.displacement(parameters),
            )
            self._writer.append("curvature", step, estimate.record())
            self._schedule.last_curvature = step
            self._tracking.begin(step, estimate, parameters)

    def _append_batches(self, step: int, row: Mapping[str, Any] | None) -> None:
        if row is not None:
            self._writer.append("batches", step, row)

    @contextmanager
    def _quiet_failure(self) -> Iterator[None]:
        """A loss that is not finite has no curvature, and that is no failure of the measurement."""
        try:
            yield
        except CurvatureError as error:
            if "closure's loss is" not in str(error):
                raise
            self._tell_once("measurement-failed", str(error), "curvature")

    # -- planning ------------------------------------------------------------------------------------------------------

    def _plan_next(self, step: int) -> None:
        schedule = self._schedule
        measured = schedule.wants_measured(step) and self._afford(step)
        partner = schedule.wants_partner(step) and not measured and self._budget.affords("measured")
        curvature = self._has_closure is not False and schedule.wants_curvature(step)
        if curvature and schedule.curvature_every is None and schedule.last_curvature is not None:
            curvature = self._budget.affords("curvature")
        if measured:
            schedule.last_measured, schedule.skipped = step, 0
        self._plan = Plan(step, measured, partner, curvature)
        self._entrance.disarm()
        # The first forward is left alone: only after it is known whether it runs compiled, and if there is a closure.
        self._compiled = self._compiled or describe.compiled_frames() > self._frames
        if measured and not self._compiled and step > schedule.first:
            self._entrance.arm(observing=self._has_closure is False)

    def _afford(self, step: int) -> bool:
        if step - self._schedule.first < 2 or self._budget.affords("measured"):
            return True
        self._schedule.skipped += 1
        self._tell_once(
            "budget",
            f"measuring cost {self._budget.total:.1f} s of {self._budget.unwatched:.1f} s so far: "
            f"measured updates are spaced wider than every={self._schedule.every} to keep the budget",
        )
        return False

    # -- sending -------------------------------------------------------------------------------------------------------

    def _send(self, record: "_Record", loss: Any) -> None:
        update = record.update
        values = {"time": time.time(), "loss": loss, "lr": update.learning_rates[0] if update.learning_rates else NAN}
        packet: dict[str, Any] = {f"scalars/{name}": value for name, value in (values | update.values).items()}
        packet |= record.packet()
        step = update.plan.step
        self._courier.send(packet, lambda arrived: self._deliver(step, record, arrived))

    def _deliver(self, step: int, record: "_Record", arrived: Mapping[str, Any]) -> None:
        scalars = {k.removeprefix("scalars/"): v for k, v in arrived.items() if k.startswith("scalars/")}
        if (scalars.pop("found_inf", None) or 0.0) > 0:
            self._event("skipped-step", "the fused optimizer skipped an update whose gradients overflowed", "", step)
            scalars |= {"grad_norm": NAN, "update_norm": 0.0}
        scalars = {name: NAN if value is None else float(value) for name, value in scalars.items()}
        self._writer.append("scalars", step, scalars)
        if self._forward:
            with self._guard("forward_to"):
                self._forward(step, {n: v for n, v in scalars.items() if n != "time" and v == v})
        for table, names in record.names.items():
            columns = {c: arrived[f"{table}/{c}"] for c in record.columns[table]}
            self._writer.append_many(table, step, names, columns)

    # -- small parts ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        update, _ = self._updates.take()
        if update is not None:
            self._send(_Record(update), NAN)
        self._courier.collect(wait=True)
        if self._tracking.following():
            self._append_batches(self._plan.step - 1, self._tracking.combined())

    def _current_tensors(self) -> dict[str, Tensor]:
        """Parameters by name; looked up again when the optimizer's or the model's number of parameters changed."""
        count = sum(len(group["params"]) for group in self.optimizer.param_groups)
        if count != getattr(self, "_count", count):
            self._tensors = describe.named_tensors(self._inner, self.optimizer)
            self._writer.update_meta(layers=describe.layers(self._inner, self.optimizer))
            self._event("layers-changed", f"the optimizer now holds {count} tensors", "")
        self._count = count
        return self._tensors

    def _scale(self) -> Tensor | None:
        """The gradient scaler's scale, on the device: `get_scale` would wait for it."""
        return None if self._scaler is None or not self._scaler.is_enabled() else self._scaler._scale

    @contextmanager
    def _hooked(self, name: str) -> Iterator[None]:
        """Around everything that runs inside one of our hooks: charged, and never raising."""
        kind = "measured" if self._plan.measured or self._plan.partner else "always"
        with self._budget.charge(kind), self._guard(name):
            yield

    def _event(self, kind: str, message: str, subject: str, step: int | None = None) -> None:
        self._writer.event(self._plan.step if step is None else step, kind, message, subject)

    def _tell_once(self, kind: str, message: str, subject: str = "") -> None:
        if kind + subject in self._once:
            return
        self._once.add(kind + subject)
        self._event(kind, message, subject)
        if kind not in ("budget", "measurement-failed"):
            warnings.warn(f"diagnostics: {message}", RuntimeWarning, stacklevel=4)


class _Record:
    """The rows of one update, on their way."""

    def __init__(self, update: Update) -> None:
        self.update = update
        self.names: dict[str, list[str]] = {}
        self.columns: dict[str, dict[str, Any]] = {}

    def add(self, table: str, names: list[str], columns: Mapping[str, Any]) -> None:
        if names:
            self.names[table], self.columns[table] = names, dict(columns)

    def packet(self) -> dict[str, Any]:
        return {f"{table}/{name}": value for table, columns in self.columns.items() for name, value in columns.items()}


def _bad(update: Update, loss: Any) -> bool:
    """Read at once only where that does not wait for a device."""
    on_host = not isinstance(loss, Tensor) or loss.device.type == "cpu"
    return bool(update.bad_gradients) or (on_host and not math.isfinite(float(loss)))


def _device(tensors: Mapping[str, Tensor]) -> torch.device:
    first = next(iter(tensors.values()), None)
    return torch.device("cpu") if first is None else first.device
