"""One writer a run: taking a directory, and refusing it while another process writes there."""

import os
import sys
from typing import Any

from diagnostics.run.errors import RunError
from diagnostics.run.metadata import RUN, is_alive, newer, read_meta, this_machine
from diagnostics.run.storage import Local, Storage

if sys.platform != "win32":
    import fcntl


class Claim:
    """Holds a run directory until `release`. `meta`: what an earlier process left there, empty for a new run.

    On this machine an advisory lock on the directory decides, which the kernel gives up when the process ends however
    it ends; for writers elsewhere, and where a file system knows no locks, the heartbeat in run.json does.
    """

    def __init__(self, place: Storage):
        self._lock: int | None = None
        try:
            place.make()
            free = self._take(place)
            self.meta = _left_behind(place)
        except OSError as error:
            self.release()
            raise RunError(f"{place} cannot be written ({error}). Next: give another run_dir.") from error
        if reason := self.meta and newer(self.meta):
            self.release()
            raise RunError(f"{place} cannot be continued: {reason}, or give another run_dir.")
        if free is False or (self.meta.get("status") == "running" and self._lives(free)):
            self.release()
            raise RunError(_taken(place, self.meta.get("writer", {})))

    def _lives(self, free: bool | None) -> bool:
        """Whether the writer that run.json names lives. One on this machine would hold the lock."""
        here = self.meta["writer"].get("machine") == this_machine()
        return not (free and here) and is_alive(self.meta)

    def _take(self, place: Storage) -> bool | None:
        """Lock the directory: whether nobody else on this machine holds it, `None` where there are no locks."""
        if not isinstance(place, Local) or sys.platform == "win32":
            return None
        self._lock = os.open(place.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def release(self) -> None:
        """Also in a forked child, whose copy of the lock would otherwise outlive the parent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _taken(place: Storage, writer: dict[str, Any]) -> str:
    pid, host = writer.get("pid", "(just started)"), writer.get("host", "this one")
    ours = pid == os.getpid() and writer.get("machine") == this_machine()  # as where a cell of a notebook runs again
    who, end = (", this very process", "close() the earlier monitor") if ours else ("", "end that process")
    return f"{place} is being written by process {pid} on host {host}{who}. Next: {end}, or give another run_dir."


def _left_behind(place: Storage) -> dict[str, Any]:
    """The metadata of the run to continue. A rotten run.json does not stop a run from being continued."""
    if RUN not in place.files():
        return {}
    try:
        return read_meta(place)
    except ValueError:
        return {}
