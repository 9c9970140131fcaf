"""A chart description and a run -> an Altair chart. Pure: no page, no state, no file is touched here."""

from diagnostics.charts.heatmap import heatmap
from diagnostics.charts.inputs import inputs
from diagnostics.charts.lines import lines
from diagnostics.charts.parts import Drawn
from diagnostics.charts.spectrum import spectrum
from diagnostics.charts.stability import stability
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

MARKS = {"line": lines, "heatmap": heatmap, "stability": stability, "spectrum": spectrum, "inputs": inputs}


def draw(run: Run, chart: Chart, finding: Finding | None = None) -> Drawn:
    """The picture `chart` describes, of this run, with the span of `finding` shaded."""
    return MARKS[chart.mark](run, chart, finding)
