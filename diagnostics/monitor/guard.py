"""Nothing that goes wrong in a measurement reaches the training loop.

An error becomes an event and, the first time, a warning; a measurement that failed three times is switched off, if it
is one that can be.
"""

import contextlib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from diagnostics.monitor.budget import Charge

LIMIT = 3
_INSIDE = tuple(os.path.join(folder, "") for folder in (os.path.dirname(os.path.dirname(__file__)), *torch.__path__))


class Guard:
    def __init__(self, event: Callable[[str, str, str], None]) -> None:
        self._event = event
        self.failures: Counter[str] = Counter()
        self._last = ""

    def off(self, measurement: str) -> bool:
        return self.failures[measurement] >= LIMIT

    def __call__(self, measurement: str) -> "Guarded":
        """What raises inside is recorded as a failure of `measurement`."""
        return Guarded(self, measurement)

    def run(self, measurement: str, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns; `None` if it fails, or if the measurement is switched off."""
        if self.off(measurement):
            return None
        with self(measurement):
            return function(*args)
        if self.failures[measurement] == LIMIT:
            message = f"{measurement} failed {LIMIT} times and is no longer measured; the last error: {self._last}"
            with contextlib.suppress(Exception):
                self._event("measurement-off", message, measurement)
        return None

    def failed(self, measurement: str, error: Exception) -> None:
        self.failures[measurement] += 1
        if self.failures[measurement] > LIMIT:
            return  # what cannot be switched off is told no more
        self._last = text = f"{type(error).__name__}: {error}"
        if self.failures[measurement] == 1:
            warn(f"{measurement} could not be measured: {text}")
        with contextlib.suppress(Exception):  # it may be the writing that fails
            self._event("measurement-failed", f"{measurement} could not be measured: {text}", measurement)


class Guarded:
    """A context manager of a class of its own, as in `budget.Charge`."""

    __slots__ = ("_guard", "_measurement")

    def __init__(self, guard: Guard, measurement: str) -> None:
        self._guard, self._measurement = guard, measurement

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False  # nothing, or an interruption that ends the training
        self._guard.failed(self._measurement, error)
        return True


class Hooked:
    """Two context managers in one; `ExitStack` would cost more than what runs inside."""

    __slots__ = ("_charge", "_guarded")

    def __init__(self, charge: Charge, guarded: Guarded) -> None:
        self._charge, self._guarded = charge, guarded

    def __enter__(self) -> None:
        self._charge.__enter__()

    def __exit__(self, *error: Any) -> bool:
        swallowed = self._guarded.__exit__(*error)
        self._charge.__exit__()
        return swallowed


class Kept:
    """Keeps what raises inside, and lets the rest go on."""

    __slots__ = ("_failures",)

    def __init__(self, failures: list[Exception]) -> None:
        self._failures = failures

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Exception):
            self._failures.append(error)
        return isinstance(error, Exception)


def warn(text: str) -> None:
    """A warning that stays one: where warnings are made errors, training goes on all the same; the event is kept."""
    with contextlib.suppress(RuntimeWarning):
        warnings.warn(f"diagnostics: {text}", RuntimeWarning, stacklevel=_of_the_user())


def _of_the_user() -> int:
    """Stack level of the line of a training script from which PyTorch or this package was called; 2 where none was, as
    at the interpreter's end."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    return 2 if frame.f_code.co_filename.startswith(_INSIDE) else level
