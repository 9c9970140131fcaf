"""Watch a Hugging Face `Trainer`: `Trainer(..., callbacks=[DiagnosticsCallback("runs/name")])`.

The trainer's callbacks are given neither the loss nor the batch, and its logs replace a loss of NaN by the last finite
average. Both are therefore read where they pass: at the model's forward. The closure repeats the last one.
"""

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diagnostics.monitor import Monitor, watch
from diagnostics.monitor.forwards import is_quiet


class Watching:
    """The events. Mixed into transformers' own `TrainerCallback` when the class is first used."""

    def __init__(self, run_dir: str | Path, **options: Any) -> None:
        """`options`: as for `diagnostics.watch`."""
        super().__init__()
        self.run_dir, self.options = run_dir, options
        self.monitor: Monitor | None = None
        self._hook: Any = None
        self._model: Any = None
        self.entrance: Any = None
        self._inputs: dict[str, Any] | None = None
        self._losses: list[Tensor] = []
        self._shared = False  # the model divides by the items of all micro-batches itself

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._model = kwargs["model"]
        self.monitor = watch(self._model, kwargs["optimizer"], self.run_dir, **self.options)
        self.entrance = _compiled(self._model) if args.torch_compile else self._model
        self._hook = self.entrance.register_forward_hook(_Passing(self), with_kwargs=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses, self._losses = self._losses, []
        total = sum(losses[1:], losses[0]) if losses else None
        mean = total if self._shared or total is None else total / len(losses)
        if self.monitor is not None:
            self.monitor.step(mean, self._closure if self._inputs is not None else None)
        self._inputs = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        numbers = {
            name: v for name, v in (logs or {}).items() if name.startswith("eval_") and isinstance(v, int | float)
        }
        if self.monitor is not None and numbers:
            self.monitor.log(**numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hook.remove()
        if self.monitor is not None:
            self.monitor.close()

    def passed(self, kwargs: dict[str, Any], output: Any) -> None:
        """A forward of the model: one micro-batch, if it trains and its output has a loss."""
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if is_quiet() or not torch.is_grad_enabled() or not isinstance(loss, Tensor):
            return
        self._shared = kwargs.get("num_items_in_batch") is not None
        self._losses.append(loss.detach())
        self._inputs = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}

    def _closure(self) -> Tensor:
        assert self._inputs is not None
        return self._model(**self._inputs)["loss"]


def _compiled(model: Any) -> Any:
    """The compiled wrapper that the trainer calls: a hook on the model inside it would be compiled as well.

    No callback is given it, so that it is looked for among all objects, once.
    """
    from torch._dynamo import OptimizedModule

    wrappers = (each for each in gc.get_objects() if type(each) is OptimizedModule)
    return next((each for each in wrappers if each._orig_mod is model), model)


class _Passing:
    """A forward hook that copies and pickles as nothing: the trainer saves the model."""

    def __init__(self, watching: Watching | None = None) -> None:
        self._watching = watching

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._watching is not None and module is self._watching.entrance:
            self._watching.passed(kwargs, output)

    def __reduce__(self) -> tuple:
        return _Passing, ()


@cache
def _callback() -> type:
    from transformers import TrainerCallback

    return type("DiagnosticsCallback", (Watching, TrainerCallback), {"__doc__": Watching.__init__.__doc__})


def __getattr__(name: str) -> Callable[..., Any]:
    if name == "DiagnosticsCallback":
        return _callback()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
