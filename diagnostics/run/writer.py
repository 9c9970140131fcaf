"""Appending to a run while a network trains.

`append` only puts what it is given into a queue. A daemon thread turns the queue into record batches and appends them
to the run's streams at least every half second, so that a process that is killed loses less than a second. Nothing
here may stop a training run: what cannot be written is kept, then written when that is possible again.
"""

import atexit
import math
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diagnostics.metrics import TABLES
from diagnostics.run.appender import Appender
from diagnostics.run.bell import Bell
from diagnostics.run.claim import Claim
from diagnostics.run.errors import RunError
from diagnostics.run.files import Files
from diagnostics.run.layout import FORMAT, Record, column_dtype, readable
from diagnostics.run.metadata import HEARTBEAT_SECONDS, RUN, SUMMARY, this_process, write_json
from diagnostics.run.outage import Item, Outage, log
from diagnostics.run.sessions import settings_before
from diagnostics.run.storage import Local, storage
from diagnostics.run.watcher import Watcher

FLUSH_SECONDS = 0.5
SEGMENT_SECONDS = 5.0  # where every flush is an object of its own
_URGENT = ("loss", "grad_norm")  # written at once when they cease to be finite
Values = Sequence | np.ndarray
_writers: "weakref.WeakSet[RunWriter]" = weakref.WeakSet()


class RunWriter:
    """Creates a run, or continues the one in `run_dir`. `resumed_from`: the step after which it begins, 0 if new.

    `append`, `append_many`, `log` and `event` may be called from any thread. `on_flush` is called in a background
    thread after each flush, never twice at a time; a slow one delays only itself.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        meta: Mapping[str, Any],
        *,
        first_step: int | None = None,
        on_flush: Callable[[], None] | None = None,
    ):
        if first_step is not None and first_step < 1:
            raise ValueError(f"first_step is {first_step}; updates are counted from 1")
        self._place = storage(run_dir)
        self._claim = Claim(self._place)
        try:
            self._open(meta, first_step)
        except OSError as error:
            self._claim.release()
            raise RunError(f"{self._place} cannot be written ({error}). Next: give another run_dir.") from error
        self._queue: deque[Item] = deque()
        self._flushes: deque[Bell] = deque()  # of those who wait until everything is written
        self._saving = threading.Lock()
        self._wake = Bell()
        self._outage = Outage()
        self._refusals: set[tuple[str, int]] = set()
        self._nonfinite = dict.fromkeys(_URGENT, False)
        self._stopping = self._closed = self._forked = False
        self.seconds = 0.0  # of a processor that the writer thread has used
        self._watcher = Watcher(on_flush, self._watcher_failed) if on_flush else None
        self._thread = threading.Thread(target=self._work, name="diagnostics-writer", daemon=True)
        self._thread.start()
        _writers.add(self)

    def _open(self, meta: Mapping[str, Any], first_step: int | None) -> None:
        files, now = Files(self._place, self._place.files()), time.time()
        before = self.before = self._claim.meta  # what the run said of itself until now
        self.resumed_from = files.last_step() if first_step is None else first_step - 1
        self.last_step = self.resumed_from
        session = 1 + max([before.get("session", 0), *(stream.origin.session for stream in files.streams)])
        self._appender = Appender(self._place, session, self.resumed_from + 1, self._refused)
        own = {"status": "running", "updated": now, "session": session, "writer": this_process()}
        self._meta = {"created": now, **before, **meta, **own, "last_step": self.last_step}
        self._meta["earlier"] = settings_before(before, meta, self.resumed_from)
        self._meta["created"] = before.get("created", self._meta["created"])
        self._meta["versions"] = {**self._meta.get("versions", {}), "format": FORMAT}
        self._save_meta()
        self._place.remove(SUMMARY)

    # -- appending: what training waits for -----------------------------------------------------------------------

    def append(self, table: str, step: int, values: Mapping[str, Any]) -> None:
        """One row of a flat table."""
        if TABLES[table].key is not None:
            raise ValueError(f"table {table!r} has names: use append_many")
        self._put(table, Record(step, dict(values)))
        if table == "scalars":
            self.last_step = step
            self._look_at(values)

    def append_many(self, table: str, step: int, names: Sequence[str], values: Mapping[str, Values]) -> None:
        """One record of a keyed table: one value per name in every column. Copies what it is given."""
        if TABLES[table].key is None:
            raise ValueError(f"table {table!r} has no names: use append")
        copied = {column: _copied(table, column, value) for column, value in values.items()}
        self._put(table, Record(step, copied, tuple(names)))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers of the training script: further columns of `scalars` on reading."""
        self.append("logged", step, {"step (logged)" if name == "step" else name: v for name, v in scalars.items()})

    def event(self, step: int, kind: str, message: str, subject: str = "") -> None:
        self.append("events", step, {"kind": kind, "message": readable(message), "subject": subject})

    def _put(self, table: str, record: Record) -> None:
        if not self._closed:
            self._queue.append((table, record))
        elif not self._forked:
            log.warning("%s is closed: a record of table %s, step %d, is not kept", self._place, table, record.step)

    def _look_at(self, values: Mapping[str, Any]) -> None:
        """The first number of a streak that is not finite is written at once: a crash may be near."""
        for name in _URGENT:
            value = values.get(name, 0.0)
            nonfinite = value != value or value in (math.inf, -math.inf)
            if nonfinite and not self._nonfinite[name]:
                self._wake.ring()
            self._nonfinite[name] = nonfinite

    # -- writing: in the background ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Everything appended before is on disk when this returns, unless the directory takes nothing.

        The writer thread does it: Ctrl-C interrupts the main thread only, and never between taking and writing.
        """
        if self._closed:
            return
        done = Bell()
        self._flushes.append(done)
        self._wake.ring()
        while not done.wait(FLUSH_SECONDS) and self._thread.is_alive():
            pass

    def update_meta(self, **changes: Any) -> None:
        """Atomically replaces run.json."""
        if self._closed:
            return
        with self._saving:
            self._meta |= changes
            try:
                self._save_meta()
            except Exception as error:  # a remote store's own errors too
                log.warning("%s in %s is not up to date: %s", RUN, self._place, error)

    def close(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Flush and let go of the directory. `status`: finished, failed or interrupted."""
        if self._closed:
            return
        self._stop_threads()
        if kept := self._outage.kept:
            log.error("%s: %d records could not be written (%s)", self._place, len(kept), self._outage.error)
        if summary is not None:
            self._save_summary(summary)
        self.update_meta(status=status, updated=time.time(), last_step=self.last_step, writer={})
        self._closed = True
        self._claim.release()

    def disown(self) -> None:
        """In a forked child: this run is the parent's. Touches no lock, another thread may have held it."""
        self._closed = self._forked = True
        self._queue.clear()
        self._claim.release()

    def _work(self) -> None:
        pause = FLUSH_SECONDS if isinstance(self._place, Local) else SEGMENT_SECONDS
        while not self._stopping:
            self._sleep(pause)
            self._turn()
            self.seconds = time.thread_time()
        self._turn()
        self._turn()  # for the event about a gap that the turn before ended

    def _sleep(self, pause: float) -> None:
        try:
            self._wake.wait(pause)
        except Exception:  # as below
            log.exception("%s: the writer is not woken and goes on", self._place)
            time.sleep(pause)

    def _turn(self) -> None:
        """Write what was appended; tell those who wait for it."""
        waiting = [self._flushes.popleft() for _ in range(len(self._flushes))]
        try:
            if waiting or self._stopping or time.monotonic() >= self._outage.retry_at:
                self._drain()
            if time.time() - self._saved > HEARTBEAT_SECONDS:
                self.update_meta(updated=time.time(), last_step=self.last_step)
        except Exception:  # recording must not end in silence; what failed is in the log
            log.exception("%s: the writer failed and goes on", self._place)
        for done in waiting:
            done.ring()
        if self._watcher and not self._stopping:
            self._watcher.wake()

    def _drain(self) -> None:
        items = [self._queue.popleft() for _ in range(len(self._queue))]
        if self._outage.error:
            self._outage.keep(items)
            items = self._outage.take()
        if not items:
            return
        failed, error = self._appender.write(items)
        if error:
            self._outage.begin(failed, error)
        elif self._outage.error:
            self.event(items[0][1].step, "gap", self._outage.end())

    def _refused(self, table: str, record: Record, error: Exception) -> None:
        """Says so once for each record, however often it is tried to write it."""
        if (table, record.step) in self._refusals:
            return
        self._refusals.add((table, record.step))
        log.warning("%s: step %d of table %s is no record: %s", self._place, record.step, table, error)
        if table != "events":
            message = f"a record of table {table} could not be stored: {type(error).__name__}: {error}"
            self.event(record.step, "record-refused", message, table)

    def _watcher_failed(self, error: Exception) -> None:
        self.event(self.last_step, "on-flush-failed", f"{type(error).__name__}: {error}")

    def _stop_threads(self) -> None:
        """The callbacks first: what they append is still written."""
        if self._watcher:
            self._watcher.stop()
        self._stopping = True
        self._wake.ring()
        self._thread.join()

    def _save_meta(self) -> None:
        write_json(self._place, RUN, self._meta)
        self._saved = time.time()

    def _save_summary(self, summary: Mapping[str, Any]) -> None:
        try:
            sizes = Files(self._place, self._place.files()).fingerprint()  # tells whether it is still of these files
            write_json(self._place, SUMMARY, {**summary, "files": sizes})
        except Exception as error:
            log.warning("%s in %s could not be written: %s", SUMMARY, self._place, error)


def _copied(table: str, column: str, value: Values) -> Any:
    """A copy, because the caller may reuse its buffer; what is no array of numbers is refused when it is encoded."""
    if column_dtype(table, column) == "string":
        return tuple(value)
    return np.array(value)


def _close_all() -> None:
    """At exit, of runs that nobody closed. An exception that ended the interpreter is still known then."""
    status = "failed" if getattr(sys, "last_value", None) is not None else "finished"
    for writer in list(_writers):
        writer.close(status)


def _disown_all() -> None:
    for writer in list(_writers):
        writer.disown()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
