"""The numbers a script gave to `monitor.log`, by the names it gave them: validation loss, accuracy, anything."""

import numpy as np

from diagnostics.charts import parts
from diagnostics.charts.lines import draw_lines, whole
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.run import Run

DECADES = 100.0  # an accuracy that rises tenfold is read on a linear axis, a validation loss that falls so far is not


def names(run: Run) -> list[str]:
    return [name for name in run.columns("logged") if name != "step"]


def title(name: str) -> str:
    """So that a logged loss is not taken for the recorded one."""
    return f"{name} (logged)"


def given(run: Run, name: str) -> Frame:
    """Columns step and `name`, where it was logged: other numbers have calls of their own."""
    frame: Frame = run.table("logged", ["step", name])
    return frame[frame[name].notna()]


def logged(run: Run, name: str) -> Drawn:
    frame = given(run, name)
    values = frame[name].to_numpy(float)
    if not np.isfinite(values).any():
        return parts.empty(f"{name}: every value is NaN or infinite")
    series = {name: (frame["step"].to_numpy(), values)}
    wide = parts.wide(values, DECADES)
    return draw_lines(series, title(name), log=wide, limits=whole(run), marked=(name,))
