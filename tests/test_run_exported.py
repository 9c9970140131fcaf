"""The exported Parquet opens in one line elsewhere, as the README says it does."""

import re
from pathlib import Path

import pytest

from diagnostics.run import RunWriter, load
from diagnostics.run.export import export

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_the_line_of_the_readme(library, tmp_path, monkeypatch):
    module = pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    writer = RunWriter("run", {"name": "run"})
    for step in range(1, 8):
        writer.append("scalars", step, {"loss": 1 / step if step != 4 else float("nan"), "lr": 0.1})
    writer.close("finished")
    export(load("run"), "export")
    text = README.read_text()
    if library == "duckdb":
        line = re.search(r"`(from 'export/scalars.parquet')`", text)[1]
        columns = module.sql(line).fetchnumpy()
    else:
        line = re.search(rf"`({library}\.read_parquet\([^`]*\))`", text)[1]
        columns = eval(line, {library: module})
    assert list(columns["step"]) == list(range(1, 8))
    assert [round(float(loss), 6) for loss in columns["loss"] if loss is not None and loss == loss] == [
        round(1 / step, 6) for step in (1, 2, 3, 5, 6, 7)
    ]
