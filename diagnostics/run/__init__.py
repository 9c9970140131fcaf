"""The store: append to a run, load a run."""

from diagnostics.run.buckets import BUCKETS, bucketed
from diagnostics.run.catalog import load, runs, stamp, unreachable
from diagnostics.run.errors import RunError
from diagnostics.run.layout import readable
from diagnostics.run.metadata import is_alive, is_number
from diagnostics.run.reader import Run
from diagnostics.run.storage import Stamp
from diagnostics.run.summary import cached_summary, summarize
from diagnostics.run.told import NOTHING_TOLD
from diagnostics.run.untold import not_told
from diagnostics.run.warned import OTHER_WEIGHTS, other_weights, warnings
from diagnostics.run.writer import RunWriter

__all__ = [
    "BUCKETS",
    "NOTHING_TOLD",
    "OTHER_WEIGHTS",
    "Run",
    "RunError",
    "RunWriter",
    "Stamp",
    "bucketed",
    "cached_summary",
    "is_alive",
    "is_number",
    "load",
    "not_told",
    "other_weights",
    "readable",
    "runs",
    "stamp",
    "summarize",
    "unreachable",
    "warnings",
]
