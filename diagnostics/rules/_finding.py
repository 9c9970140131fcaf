"""What a diagnosis is made of: findings, and which charts show them. Values only; nothing here decides anything."""

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Chart:
    """A picture to draw from a run, as data. `diagnostics.charts.draw(run, chart, finding)` turns it into Altair.

    `mark`: "line" (columns over steps; one line a layer where the table has layers), "heatmap" (layer x step of one
    column), "stability" (s over steps with this optimizer's oscillation and stability limits), "spectrum"
    (eigenvalues with error bars over steps), "inputs" (mean and deviation of each input feature), "examples" (of the
    last batch of which some were kept: input, target and answer).
    """

    mark: Literal["line", "heatmap", "stability", "spectrum", "inputs", "examples"]
    table: str
    columns: tuple[str, ...]
    title: str
    layers: tuple[str, ...] = ()
    log: bool = False


@dataclass(frozen=True)
class Finding:
    """One phenomenon of the lecture, seen in a run, with its numbers.

    `formula` is the mechanism in LaTeX with this run's numbers in place of the symbols ("" where none applies).
    `first_step` is the step since when, `last_step` is `None` while it lasts.
    """

    kind: str
    cause: str | None
    severity: Severity
    first_step: int
    last_step: int | None
    layers: tuple[str, ...]
    summary: str
    evidence: dict[str, float]
    remedies: tuple[str, ...]
    charts: tuple[Chart, ...] = ()
    formula: str = ""

    @property
    def alarm(self) -> bool:
        return self.severity != "info"

    @property
    def span(self) -> str:
        """Since when, or from when to when."""
        if self.last_step is None:
            return f"since step {self.first_step:,}"
        until = "" if self.last_step == self.first_step else f" to {self.last_step:,}"
        return f"step {self.first_step:,}{until}"


@dataclass(frozen=True)
class Diagnosis:
    """`findings` worst first; `clean`: rules that ran and found nothing; `skipped`: rule -> missing measurement;
    `crashed`: rule -> error; `absorbed`: rules whose every finding became evidence of another."""

    findings: tuple[Finding, ...] = ()
    clean: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)
    absorbed: tuple[str, ...] = ()

    @property
    def checked(self) -> tuple[str, ...]:
        """Rules that had what they need."""
        ran = dict.fromkeys((*(finding.kind for finding in self.findings), *self.absorbed, *self.clean))
        return tuple(kind for kind in ran if kind not in self.crashed)

    @property
    def checks(self) -> int:
        """How many rules there were."""
        return len({*self.checked, *self.skipped, *self.crashed})

    @property
    def unchecked(self) -> dict[str, tuple[str, ...]]:
        """Missing measurement -> the rules that were skipped for want of it."""
        return {
            reason: tuple(rule for rule in self.skipped if self.skipped[rule] == reason)
            for reason in dict.fromkeys(self.skipped.values())
        }

    @property
    def alarms(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.alarm)
