"""A run's tables as Parquet or CSV files, for pandas, Polars, DuckDB or a spreadsheet."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from diagnostics.metrics import TABLES
from diagnostics.run.reader import Run

FORMATS = ("parquet", "csv")
_STEPS_AT_ONCE = 5_000  # measured steps of a keyed table that are unfolded at a time


def export(run: Run, folder: str | Path, form: str = "parquet") -> dict[str, int]:
    """Write one file per table that has rows; table -> number of rows."""
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; there are {' and '.join(FORMATS)}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    write = _parquet if form == "parquet" else _csv
    counts = {name: write(_pieces(run, name), Path(folder) / f"{name}.{form}") for name in TABLES}
    return {name: rows for name, rows in counts.items() if rows}


def _pieces(run: Run, name: str) -> Iterator[pd.DataFrame]:
    steps = run.steps(name)
    at_once = _STEPS_AT_ONCE if TABLES[name].key else max(1, len(steps))
    for start in range(0, len(steps), at_once):
        chunk = steps[start : start + at_once]
        yield run.table(name, first=int(chunk[0]), last=int(chunk[-1]))


def _parquet(pieces: Iterator[pd.DataFrame], file: Path) -> int:
    rows, writer = 0, None
    for piece in pieces:
        table = pa.Table.from_pandas(piece, preserve_index=False)
        writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
        writer.write_table(table.cast(writer.schema))
        rows += len(piece)
    if writer:
        writer.close()
    return rows


def _csv(pieces: Iterator[pd.DataFrame], file: Path) -> int:
    rows = 0
    for piece in pieces:
        piece.to_csv(file, mode="a" if rows else "w", header=not rows, index=False)
        rows += len(piece)
    return rows
