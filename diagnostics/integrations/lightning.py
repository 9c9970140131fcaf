"""Watch a Lightning training: `Trainer(callbacks=[DiagnosticsCallback("runs/name")])`.

Lightning runs forward and backward inside `optimizer.step`; the monitor's hooks see them there, after unscaling and
clipping. The closure repeats `training_step` on the batch, with its logging switched off.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diagnostics.monitor import Monitor, watch


class Watching:
    """The hooks. Mixed into Lightning's own `Callback` when the class is first used."""

    def __init__(self, run_dir: str | Path, **options: Any) -> None:
        """`options`: as for `diagnostics.watch`. Several optimizers get a run each, numbered below `run_dir`."""
        super().__init__()
        self.run_dir, self.options = Path(run_dir), options
        self.monitors: list[Monitor] = []
        self._updates = 0
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        model = trainer.strategy.model
        wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for i, optimizer in enumerate(trainer.optimizers):
            place = self.run_dir if len(trainer.optimizers) == 1 else self.run_dir / f"optimizer-{i}"
            options = {"scaler": scaler, **self.options}
            self.monitors.append(watch(model if wrapped else pl_module, optimizer, place, **options))
        self._updates = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())  # of an accumulation already divided by its length
        if self._accumulating(trainer):
            return
        self._updates = trainer.global_step
        total = sum(self._losses[1:], self._losses[0]) if self._losses else None
        self._losses = []
        closure = partial(_loss, trainer, pl_module, batch, batch_idx) if pl_module.automatic_optimization else None
        for monitor in self.monitors:
            if pl_module.automatic_optimization or monitor.updated:  # by hand not every batch updates each optimizer
                monitor.step(total, closure)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items() if _is_number(value)}
        for monitor in self.monitors:
            monitor.log(**numbers)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close("finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    def _accumulating(self, trainer: Any) -> bool:
        """Within an accumulation; a step that a gradient scaler skipped ends one as well."""
        return trainer.fit_loop._should_accumulate()

    def _close(self, status: str) -> None:
        for monitor in self.monitors:
            monitor.close(status)
        self.monitors = []


def _loss(trainer: Any, module: Any, batch: Any, batch_idx: int) -> Any:
    """The loss of `training_step`, repeated."""
    with trainer.precision_plugin.train_step_context(), _not_logging(module):
        result = module.training_step(batch, batch_idx)
    return result["loss"] if isinstance(result, dict) else result


@contextmanager
def _not_logging(module: Any) -> Iterator[None]:
    names = ("log", "log_dict")
    for name in names:
        module.__dict__[name] = _nothing
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1


@cache
def _callback() -> type:
    from lightning.pytorch import Callback

    return type("DiagnosticsCallback", (Watching, Callback), {"__doc__": Watching.__init__.__doc__})


def __getattr__(name: str) -> Callable[..., Any]:
    if name == "DiagnosticsCallback":
        return _callback()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
