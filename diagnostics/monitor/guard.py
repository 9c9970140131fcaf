"""Nothing that goes wrong in a measurement reaches the training loop.

An error becomes an event and, the first time, a warning; a measurement that failed three times is switched off.
"""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LIMIT = 3


class Guard:
    def __init__(self, event: Callable[[str, str, str], None]) -> None:
        self._event = event
        self.failures: Counter[str] = Counter()

    def off(self, measurement: str) -> bool:
        return self.failures[measurement] >= LIMIT

    @contextmanager
    def __call__(self, measurement: str) -> Iterator[None]:
        """What raises inside is recorded as a failure of `measurement`."""
        try:
            yield
        except Exception as error:
            self._failed(measurement, error)

    def run(self, measurement: str, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns; `None` if it fails, or if the measurement is switched off."""
        if self.off(measurement):
            return None
        with self(measurement):
            return function(*args)
        return None

    def _failed(self, measurement: str, error: Exception) -> None:
        self.failures[measurement] += 1
        if self.failures[measurement] > LIMIT:
            return  # what cannot be switched off is told no more
        text = f"{type(error).__name__}: {error}"
        self._event("measurement-failed", f"{measurement} could not be measured: {text}", measurement)
        if self.failures[measurement] == 1:
            warn(f"{measurement} could not be measured: {text}")
        if self.off(measurement):
            message = f"{measurement} failed {LIMIT} times and is no longer measured; the last error: {text}"
            self._event("measurement-off", message, measurement)


def warn(text: str) -> None:
    """A warning that stays one: where warnings are made errors, training goes on all the same; the event is kept."""
    with contextlib.suppress(RuntimeWarning):
        warnings.warn(f"diagnostics: {text}", RuntimeWarning, stacklevel=6)
