"""Find out why a neural network does not train.

`watch` records a training loop, `load` opens the record, `diagnose` says what is wrong and why. Names are resolved on
first use, so that reading a run never imports torch and importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diagnostics.monitor import Monitor, doctor, probe, watch
    from diagnostics.rules import Diagnosis, Finding, diagnose
    from diagnostics.run import Run, RunError, load, runs

_HOME = {
    "watch": "monitor",
    "Monitor": "monitor",
    "doctor": "monitor",
    "probe": "monitor",
    "load": "run",
    "runs": "run",
    "Run": "run",
    "RunError": "run",
    "diagnose": "rules",
    "Diagnosis": "rules",
    "Finding": "rules",
}

__all__ = ["Diagnosis", "Finding", "Monitor", "Run", "RunError", "diagnose", "doctor", "load", "probe", "runs", "watch"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
