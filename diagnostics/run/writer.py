"""Appending to a run while a network trains.

`append` only puts what it is given into a queue. A daemon thread turns the queue into record batches and appends them
to the run's streams at least every half second, so that a process that is killed loses less than a second. Nothing
here may stop a training run: what cannot be written is kept, then written when that is possible again.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diagnostics.metrics import TABLES
from diagnostics.run.appender import Appender
from diagnostics.run.errors import RunError
from diagnostics.run.files import Files
from diagnostics.run.layout import FORMAT, Record, column_dtype
from diagnostics.run.metadata import HEARTBEAT_SECONDS, RUN, SUMMARY, is_alive, read_meta, this_process, write_json
from diagnostics.run.storage import storage

FLUSH_SECONDS = 0.5


class RunWriter:
    """Creates a run, or continues the one in `run_dir`. `resumed_from`: its last recorded step, 0 for a new run."""

    def __init__(
        self,
        run_dir: str | os.PathLike,
        meta: Mapping[str, Any],
        *,
        first_step: int | None = None,
        on_flush: Callable[[], None] | None = None,
    ):
        self._place = storage(run_dir)
        before = self._claim()
        files = Files(self._place, live=False)
        self.resumed_from = files.last_step() if first_step is None else first_step - 1
        self.last_step = self.resumed_from
        session = 1 + max((stream.origin.session for stream in files.streams), default=0)
        self._appender = Appender(self._place, session, self.resumed_from + 1)
        self._pid = os.getpid()
        self._queue: deque[tuple[str, Record]] = deque()
        self._writing = threading.RLock()
        self._wake = threading.Event()
        self._closed = False
        self._on_flush = on_flush
        now = time.time()
        self._meta = {"created": now, **before, **meta, "status": "running", "updated": now, "writer": this_process()}
        self._meta["versions"] = {**self._meta.get("versions", {}), "format": FORMAT}
        self._save_meta()
        self._place.remove(SUMMARY)
        self._thread = threading.Thread(target=self._work, name="diagnostics-writer", daemon=True)
        self._thread.start()

    def append(self, table: str, step: int, values: Mapping[str, Any]) -> None:
        """One row of a flat table."""
        if TABLES[table].key is not None:
            raise ValueError(f"table {table!r} has names: use append_many")
        self._put(table, Record(step, dict(values)))
        if table == "scalars":
            self.last_step = step

    def append_many(self, table: str, step: int, names: Sequence[str], values: Mapping[str, Sequence]) -> None:
        """One record of a keyed table: one value per name in every column. Copies what it is given."""
        if TABLES[table].key is None:
            raise ValueError(f"table {table!r} has no names: use append")
        copied = {column: _copied(table, column, value) for column, value in values.items()}
        self._put(table, Record(step, copied, tuple(names)))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.append("logged", step, {"step (logged)" if name == "step" else name: v for name, v in scalars.items()})

    def event(self, step: int, kind: str, message: str, subject: str = "") -> None:
        self.append("events", step, {"kind": kind, "message": message, "subject": subject})

    def update_meta(self, **changes: Any) -> None:
        with self._writing:
            self._meta |= changes
            self._save_meta()

    def flush(self) -> None:
        """Everything appended before is on disk when this returns."""
        with self._writing:
            records = [self._queue.popleft() for _ in range(len(self._queue))]
            self._appender.write(records)

    def close(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        if self._closed:
            return
        self.flush()
        self._closed = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self.flush()
        if summary is not None:
            write_json(self._place, SUMMARY, dict(summary))
        self.update_meta(status=status, updated=time.time(), last_step=self.last_step)

    def _put(self, table: str, record: Record) -> None:
        self._queue.append((table, record))

    def _claim(self) -> dict[str, Any]:
        try:
            self._place.make()
            files = self._place.files()
        except OSError as error:
            raise RunError(f"{self._place} cannot be written ({error}). Next: give another run_dir.") from error
        before = read_meta(self._place) if RUN in files else {}
        if before and before["status"] == "running" and is_alive(before):
            writer = before["writer"]
            raise RunError(
                f"{self._place} is being written by process {writer.get('pid')} on {writer.get('host')}. "
                f"Next: end that process, or give another run_dir."
            )
        return before

    def _save_meta(self) -> None:
        write_json(self._place, RUN, self._meta)
        self._saved = time.time()

    def _work(self) -> None:
        while not self._closed:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self.flush()
            if self._on_flush:
                self._on_flush()
            if time.time() - self._saved > HEARTBEAT_SECONDS:
                self.update_meta(updated=time.time(), last_step=self.last_step)


def _copied(table: str, column: str, value: Sequence) -> Any:
    dtype = column_dtype(table, column)
    return tuple(value) if dtype == "string" else np.array(value, dtype)
