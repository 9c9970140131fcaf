"""Watching a training loop: `watch` makes a `Monitor`; `doctor` says what it will see; `probe` marks an activation."""

from diagnostics.monitor.doctor import doctor
from diagnostics.monitor.monitor import Monitor
from diagnostics.monitor.probe import probe
from diagnostics.monitor.watch import watch

__all__ = ["Monitor", "doctor", "probe", "watch"]
