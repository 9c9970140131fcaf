"""`diagnostics.watch`: checks what it is given, says what is watched, and hands both to a Monitor."""

import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from diagnostics.monitor import describe
from diagnostics.monitor.doctor import doctor
from diagnostics.monitor.monitor import Monitor
from diagnostics.monitor.settings import Settings, checked_config, checked_name, checked_path
from diagnostics.run import NOTHING_TOLD


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    run_dir: str | os.PathLike,
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    every: int = 10,
    curvature_every: int | None = None,
    eigenvalues: int = 5,
    budget: float = 0.05,
    first_step: int | None = None,
    scaler: Any = None,
    on_finding: Callable[[Any], None] | None = None,
    forward_to: Any = None,
    examples: int = 0,
) -> Monitor:
    """Record the training of `model` by `optimizer` in `run_dir`, without changing it in a single bit.

    A directory that holds a run is continued; if the weights are not those it stopped with, a warning says so.
    Call `monitor.step(loss, closure)` once per update. `every`: closest spacing of per-layer measurements;
    `curvature_every`: of curvature estimates (`None` adapts, 0 makes none); `budget`: all measuring costs at most
    max(5 s, budget x unwatched time), waits for a busy processor apart; `examples`: inputs, targets and answers of
    as many are kept, now and then, to be looked at. Raises for what is no module or optimizer, for
    settings that make no sense, and for a directory that cannot be written or has a live writer; everything later
    becomes an event of the run.
    """
    optimizer = describe.checked("watch", model, optimizer)
    if not describe.has_hooks(optimizer):
        raise TypeError(
            f"watch: {type(optimizer).__name__} was never initialized as an optimizer, and has no hooks; call "
            "super().__init__(params, defaults) in its __init__"
        )
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(f"watch: {lazy[0]} has no shape yet; run the model once on a batch, then watch it")
    path, name, config = checked_path(run_dir), checked_name(name), checked_config(config)
    from diagnostics import rules  # the monitor itself knows no rule

    settings = Settings(
        every=every,
        curvature_every=curvature_every,
        eigenvalues=eigenvalues,
        budget=budget,
        first_step=first_step,
        examples=examples,
        scaler=scaler,
        on_finding=on_finding,
        forward_to=forward_to,
        diagnose=rules.diagnose,
        rules_version=str(rules.VERSION),
    )
    meta = _meta(model, optimizer) | {
        "name": name or os.path.basename(os.path.normpath(path)),
        "config": describe.plain(config),
        "every": settings.every,
        "curvature_every": settings.curvature_every,
        "budget": settings.budget,
    }
    return Monitor(model, optimizer, path, meta, settings)


def _meta(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    inner = describe.unwrap(model)
    return {
        "optimizer": type(optimizer).__name__,
        "hyperparameters": describe.hyperparameters(optimizer),
        "layers": describe.layers(inner, optimizer),
        "modules": describe.modules(inner),
        "parameters": sum(parameter.numel() for parameter in inner.parameters()),
        "versions": describe.versions(),
        **deepcopy(NOTHING_TOLD),
        "observed": doctor(model, optimizer).records(),
    }
