"""A chart description and a run -> an Altair chart. Pure: no page, no state, no file is touched here."""

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from diagnostics.charts.not_finite import until_lost
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

if TYPE_CHECKING:
    from diagnostics.charts.parts import Drawn

MARKS = ("line", "heatmap", "stability", "spectrum", "inputs", "examples")  # each in a module of that name


def draw(run: Run, chart: Chart, finding: Finding | None = None) -> "Drawn":
    """The picture `chart` describes, of this run, with the span of `finding` shaded; of a run that went on for long
    after its loss was lost, up to there and some more.

    Its module is imported here: altair takes half a second, and the list of runs draws nothing.
    """
    module = import_module(f"diagnostics.charts.{'lines' if chart.mark == 'line' else chart.mark}")
    if (last := until_lost(run)) is not None:
        run, chart = run.until(last), replace(chart, title=f"{chart.title}, to step {last:,}")
    return getattr(module, module.__name__.rpartition(".")[2])(run, chart, finding)
