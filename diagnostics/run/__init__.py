"""The store: append to a run, load a run."""

from diagnostics.run.catalog import load, runs
from diagnostics.run.errors import RunError
from diagnostics.run.reader import Run
from diagnostics.run.writer import RunWriter

__all__ = ["Run", "RunError", "RunWriter", "load", "runs"]
