"""What `watch` was asked for, as one value; what is wrong with it is said before anything is written."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import Any

from diagnostics.monitor.reporter import forwarder

_WHOLE = (  # name, least, meaning
    ("every", 1, "updates between measurements"),
    ("curvature_every", 0, "updates between estimates; 0 makes none"),
    ("eigenvalues", 1, "how many; curvature_every=0 switches curvature off"),
    ("first_step", 1, "the number of the next update, counted from 1"),
    ("examples", 0, "how many of a batch are kept in the run"),
)


@dataclass(frozen=True)
class Settings:
    every: int
    curvature_every: int | None
    eigenvalues: int
    budget: float
    first_step: int | None
    examples: int
    scaler: Any
    on_finding: Callable[[Any], None] | None
    forward_to: Any
    diagnose: Callable[[Any], Any] | None
    rules_version: str

    def __post_init__(self) -> None:
        """NumPy's numbers become plain ones, as JSON has them."""
        for name, least, meaning in _WHOLE:
            value = getattr(self, name)
            if value is not None or name in ("every", "eigenvalues", "examples"):
                object.__setattr__(self, name, _whole(name, value, least, meaning))
        object.__setattr__(self, "budget", _share(self.budget))
        if self.on_finding is not None and not callable(self.on_finding):
            raise TypeError(f"watch: on_finding must be a function of a finding, not {_given(self.on_finding)}")

    def forward(self) -> Callable[[int, Mapping[str, float]], None] | None:
        return None if self.forward_to is None else forwarder(self.forward_to)


def checked_path(run_dir: Any) -> str:
    try:
        path = os.fspath(run_dir)
    except TypeError:
        path = b""
    if not isinstance(path, str) or not path:
        raise TypeError(f"watch: run_dir must be the path of a directory, not {_given(run_dir)}")
    return path


def checked_name(name: Any) -> str | None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"watch: name must be text, not {_given(name)}")
    return name


def checked_config(config: Any) -> dict[str, Any]:
    """Whatever `dict` takes: a mapping, and what other libraries keep their settings in."""
    try:
        return dict(config or {})
    except (TypeError, ValueError):
        hint = "; vars(config) makes one" if hasattr(config, "__dict__") else ""
        raise TypeError(f"watch: config must be a dict of settings, not {_given(config)}{hint}") from None


def _whole(name: str, value: Any, least: int, meaning: str) -> int:
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"watch: {name} must be a whole number ({meaning}), not {_given(value)}") from None
    if number < least:
        raise ValueError(f"watch: {name} is {number}; it must be {least} or more ({meaning})")
    return number


def _share(budget: Any) -> float:
    if not isinstance(budget, Real):
        raise TypeError(f"watch: budget must be a number, a share of the training time, not {_given(budget)}")
    share = float(budget)
    if not share >= 0:  # NaN neither
        raise ValueError(f"watch: budget is {budget}; it must be 0 or more, a share of the training time")
    return share


def _given(value: Any) -> str:
    """The value, if it is short, and its type."""
    text = repr(value)
    return f"{text} ({type(value).__name__})" if len(text) <= 40 else f"a {type(value).__name__}"
