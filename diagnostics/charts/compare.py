"""The same quantity of several runs on one pair of axes."""

import numpy as np

from diagnostics.charts import parts
from diagnostics.charts.lines import Series, draw_lines, whole
from diagnostics.charts.logged import DECADES
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.run import Run


def overlaid(runs: dict[str, Run], table: str, column: str, title: str) -> Drawn | None:
    """One line a run, by its name; runs that did not record the column are left out, `None` if none did."""
    series: Series = {}
    for name, run in runs.items():
        if column not in run.columns(table):
            continue
        frame: Frame = run.table(table, ["step", column])
        frame = frame[np.isfinite(frame[column])]
        if len(frame):
            series[name] = (frame["step"].to_numpy(), frame[column].to_numpy(float))
    if not series:
        return None
    together = np.concatenate([values for _, values in series.values()])
    log = table != "logged" or parts.wide(together, DECADES)
    ends = [whole(run) for run in runs.values()]
    limits = min(first for first, _ in ends), max(last for _, last in ends)
    return draw_lines(series, title, log=log, among=list(runs), limits=limits)


def differences(runs: dict[str, Run]) -> dict[str, list[str]]:
    """Settings in which the runs differ: name -> one value a run, as text."""
    settings = [flattened(run) for run in runs.values()]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = {name: [each.get(name, "-") for each in settings] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def flattened(run: Run) -> dict[str, str]:
    """Optimizer, its hyperparameters, the user's config and the model's shape, each as text."""
    meta = run.meta
    found = {"optimizer": meta["optimizer"], "parameters": f"{meta['parameters']:,}"}
    groups = meta["hyperparameters"]
    for place, group in enumerate(groups):
        prefix = f"group {place} " if len(groups) > 1 else ""
        found |= {f"{prefix}{name}": _text(value) for name, value in group.items()}
    found |= {f"config: {name}": _text(value) for name, value in meta["config"].items()}
    modules = [str(module.get("type") or "?") for module in meta["modules"]]
    return found | ({"modules": ", ".join(modules)} if modules else {})


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
