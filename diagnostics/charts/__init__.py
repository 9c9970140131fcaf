"""A chart description and a run -> an Altair chart. Pure: no page, no state, no file is touched here."""

from diagnostics.charts import heatmap, inputs, lines, spectrum, stability
from diagnostics.charts.parts import Drawn
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

MARKS = {
    "line": lines.lines,
    "heatmap": heatmap.heatmap,
    "stability": stability.stability,
    "spectrum": spectrum.spectrum,
    "inputs": inputs.inputs,
}


def draw(run: Run, chart: Chart, finding: Finding | None = None) -> Drawn:
    """The picture `chart` describes, of this run, with the span of `finding` shaded."""
    return MARKS[chart.mark](run, chart, finding)
