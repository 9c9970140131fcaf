"""Tells people while the network trains: new alarms, and the same scalars sent elsewhere.

`diagnose` is a plain callable that the monitor was given. It runs in the writer thread, on what is on disk, seldom
enough that all its runs together stay a small part of the time.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from diagnostics.monitor.guard import warn
from diagnostics.run import load
from diagnostics.run.summary import summarize

SPACING = 50.0  # times the length of a diagnosis that pass before the next one: 2 % of the time
SOONEST = 2.0  # seconds


class Reporter:
    def __init__(
        self,
        run_dir: str,
        diagnose: Callable[[Any], Any] | None,
        rules_version: str,
        on_finding: Callable[[Any], None] | None,
        event: Callable[[str, str, str], None],
        charge: Callable[[float], None],
    ) -> None:
        self._run_dir, self._diagnose, self._rules_version = run_dir, diagnose, rules_version
        self._on_finding, self._event, self._charge = on_finding, event, charge
        self._told: set[tuple[str, str | None]] = set()
        self._warned = False
        self._next = time.perf_counter() + SOONEST

    def on_flush_or_none(self) -> Callable[[], None] | None:
        """What the writer calls after each flush: nothing, if nobody wants to be told."""
        return None if self._on_finding is None or self._diagnose is None else self._on_flush

    def _on_flush(self) -> None:
        if self._diagnose is None or time.perf_counter() < self._next:
            return
        began = time.perf_counter()
        try:
            self._tell(self._diagnose(load(self._run_dir)))
        except Exception as error:  # the writer thread must live on
            self._event("on-finding-failed", f"diagnosing while training failed: {type(error).__name__}: {error}", "")
        seconds = time.perf_counter() - began
        self._charge(seconds)  # training waits for the interpreter meanwhile
        self._next = time.perf_counter() + max(SOONEST, SPACING * seconds)

    def summary(self, status: str) -> Mapping[str, Any]:
        """The last diagnosis: told where it is new, and summed up for `summary.json`. `status`: what the run is about
        to be; while it counts as running, some rules wait for its end."""
        run = load(self._run_dir)
        run.meta["status"] = status
        diagnosis = self._diagnose(run) if self._diagnose else None
        if diagnosis is not None and self._on_finding is not None:
            self._tell(diagnosis)
        return summarize(run, diagnosis, self._rules_version)

    def _tell(self, diagnosis: Any) -> None:
        assert self._on_finding is not None
        for finding in diagnosis.findings:
            if finding.severity == "info" or (finding.kind, finding.cause) in self._told:
                continue
            self._told.add((finding.kind, finding.cause))
            try:
                self._on_finding(finding)
            except Exception as error:
                message = f"on_finding raised {type(error).__name__}: {error}"
                self._event("on-finding-failed", message, finding.kind)
                if not self._warned:
                    self._warned = True
                    warn(message)


def forwarder(target: Any) -> Callable[[int, Mapping[str, float]], None]:
    """Send scalars to a TensorBoard `SummaryWriter` (it has `add_scalar`) or a wandb run (it has `log`)."""
    if hasattr(target, "add_scalar"):
        return partial(_to_tensorboard, target)
    if hasattr(target, "log"):
        return partial(_to_wandb, target)
    raise TypeError(
        f"forward_to: {type(target).__name__} has neither add_scalar nor log; give a SummaryWriter or a wandb run"
    )


def _to_tensorboard(writer: Any, step: int, scalars: Mapping[str, float]) -> None:
    for name, value in scalars.items():
        writer.add_scalar(f"diagnostics/{name}", value, step)


def _to_wandb(run: Any, step: int, scalars: Mapping[str, float]) -> None:
    """With a step of its own: wandb's refuses to go back, and the loop may log as well."""
    run.log({f"diagnostics/{name}": value for name, value in scalars.items()} | {"diagnostics/step": step})
