"""What `watch` was asked for, as one value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diagnostics.monitor.reporter import forwarder


@dataclass(frozen=True)
class Settings:
    every: int
    curvature_every: int | None
    eigenvalues: int
    budget: float
    first_step: int | None
    scaler: Any
    on_finding: Callable[[Any], None] | None
    forward_to: Any
    diagnose: Callable[[Any], Any] | None
    rules_version: str

    def forward(self) -> Callable[[int, Mapping[str, float]], None] | None:
        return None if self.forward_to is None else forwarder(self.forward_to)
