"""The same quantity of several runs on one pair of axes."""

import numpy as np

from diagnostics.charts import parts
from diagnostics.charts.lines import Series, draw_lines, whole
from diagnostics.charts.logged import DECADES
from diagnostics.charts.own import CLIPPED
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.charts.stability import HIGHEST, LOWEST
from diagnostics.run import Run, other_weights


def overlaid(runs: dict[str, Run], table: str, column: str, title: str) -> Drawn | None:
    """One line a run, by its name; runs that did not record the column are left out, `None` if none did."""
    series: Series = {}
    for name, run in runs.items():
        if column not in run.columns(table):
            continue
        frame: Frame = run.table(table, ["step", column])
        frame = frame[np.isfinite(frame[column])]
        if column == "stability":
            frame = frame.assign(stability=frame["stability"].clip(LOWEST, HIGHEST))
        if len(frame):
            series[name] = (frame["step"].to_numpy(), frame[column].to_numpy(float))
    if not series:
        return None
    together = np.concatenate([values for _, values in series.values()])
    log = table != "logged" or parts.wide(together, DECADES)
    ends = [whole(run) for run in runs.values()]
    limits = min(first for first, _ in ends), max(last for _, last in ends)
    border = 1.0 if column == "stability" else None
    return draw_lines(series, title, log=log, among=list(runs), limits=limits, border=border)


def clips(run: Run) -> bool:
    """Whether gradients are clipped at some updates."""
    norms: Frame = run.table("scalars", ["grad_norm", "grad_norm_unclipped"])
    return bool((norms["grad_norm"] < CLIPPED * norms["grad_norm_unclipped"]).any())


def differences(runs: dict[str, Run]) -> dict[str, list[str]]:
    """Settings in which the runs differ: name -> one value a run, as text."""
    settings = [flattened(run) for run in runs.values()]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = {name: [each.get(name, "-") for each in settings] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def flattened(run: Run) -> dict[str, str]:
    """Optimizer, its hyperparameters, the user's config and the model's shape, each as text; of what changed within
    the run every value."""
    meta = run.meta
    found = {"parameters": f"{meta['parameters']:,}"} | _settings(meta)
    for session in reversed(meta["earlier"]):
        before = _settings(session)
        for name in {**before, **found}.keys() - {"parameters"}:
            old, new = before.get(name, "-"), found.get(name, "-")
            if not (new == old or new.startswith(f"{old} up to step ")):
                found[name] = f"{old} up to step {session['last_step']:,}, then {new}"
    groups = meta["hyperparameters"]
    if groups and (rates := _rates(run)):
        found["group 0 lr" if len(groups) > 1 else "lr"] = rates
    resumed: Frame = run.table("events")
    if others := resumed.loc[other_weights(resumed), "step"].tolist():
        found["continued with other weights"] = "at step " + ", ".join(f"{step:,}" for step in others)
    modules = [str(module.get("type") or "?") for module in meta["modules"]]
    return found | ({"modules": ", ".join(modules)} if modules else {})


def _settings(meta: dict) -> dict[str, str]:
    """Of a run, or of one of its sessions."""
    found = {"optimizer": meta["optimizer"]}
    groups = meta["hyperparameters"]
    for place, group in enumerate(groups):
        prefix = f"group {place} " if len(groups) > 1 else ""
        found |= {f"{prefix}{name}": _text(value) for name, value in group.items()}
    return found | {f"config: {name}": _text(value) for name, value in meta["config"].items()}


def _rates(run: Run) -> str:
    """The learning rates of a run that used more than one, as recorded; "" of any other."""
    table: Frame = run.table("scalars", ["step", "lr"]).dropna()
    steps, rates = table["step"].to_numpy(), table["lr"].to_numpy(float)
    changes = np.flatnonzero(np.diff(rates))
    if not len(changes):
        return ""
    first, last, largest = (f"{rate:.6g}" for rate in (rates[0], rates[-1], rates.max()))
    if len(changes) == 1:
        return f"{first} up to step {steps[changes[0]]:,}, then {last}"
    return f"{first} at first, {last} at the end" + ("" if largest in (first, last) else f", {largest} at most")


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
