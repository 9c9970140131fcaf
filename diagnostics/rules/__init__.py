"""The catalogue of rules, one file a kind of finding: discovered here, never listed anywhere else.

A rule's module docstring is its explanation; `RANK` is its place in the precedence (design, section 3) and `check(run)`
yields findings or raises `Missing`. One fault gives one alarm: `explains(finding, other)` of a rule says which other
findings are consequences of its own, and those become evidence. A rule of which `OF_PACE` is true says that a run is
held up: while it still trains, that must have lasted before it is an alarm.
"""

from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import numpy as np

from diagnostics.rules._finding import Chart, Diagnosis, Finding
from diagnostics.rules._remembered import Remembered
from diagnostics.rules._signals import Missing
from diagnostics.rules._verdict import Verdict, first_clause, verdict
from diagnostics.run import Run

__all__ = [
    "Chart",
    "Diagnosis",
    "Finding",
    "Missing",
    "Verdict",
    "catalogue",
    "diagnose",
    "explain",
    "first_clause",
    "title",
    "verdict",
]

VERSION = 58  # of the rules together; stored in summary.json, so that an old summary is known to be old
_SEVERITY = {"critical": 0, "warning": 1, "info": 2}
# A run that still trains is looked at again and again, and any run stands still beside its own first updates: what
# holds it up must have done so for three quarters of the updates until now. Of 71 runs without an alarm at their end
# that were looked at while they trained, a rule of pace raised one in 13 without this, in 8 where it had lasted for
# half of the updates, in 3 with it.
LASTED = 4


@lru_cache(maxsize=1)
def catalogue() -> dict[str, ModuleType]:
    """Kind -> rule module, in order of precedence."""
    names = [entry.name for entry in iter_modules(__path__) if not entry.name.startswith("_")]
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return {module.KIND: module for module in sorted(modules, key=lambda module: module.RANK)}


def diagnose(run: Run) -> Diagnosis:
    """What is wrong with the run, worst first, and what was looked at in vain.

    Never raises for a run: a rule that lacks a measurement is `skipped` with the reason, one that fails is `crashed`.
    """
    if not isinstance(run, Run):
        raise TypeError(f"diagnose takes a Run, not {type(run).__name__}: diagnose(load(path))")
    diagnosis = _diagnosed(run)
    return _patient(diagnosis, run) if run.meta["status"] == "running" else diagnosis


def _patient(diagnosis: Diagnosis, run: Run) -> Diagnosis:
    """An alarm about the pace of a run that still trains is information until it has lasted."""
    steps = run.steps("scalars")
    if not len(steps) or not any(map(_of_pace, diagnosis.alarms)):
        return diagnosis
    early = int(steps[(len(steps) - 1) // LASTED])
    if any(map(_of_pace, _diagnosed(run.until(early)).alarms)):
        return diagnosis
    added = f" So far this is no alarm: at step {early:,} nothing was seen to hold the run up."
    calm = [
        replace(each, severity="info", summary=each.summary + added) if each.alarm and _of_pace(each) else each
        for each in diagnosis.findings
    ]
    return replace(diagnosis, findings=_sorted(calm))


def _of_pace(finding: Finding) -> bool:
    return getattr(catalogue()[finding.kind], "OF_PACE", False)


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    order = {kind: rank for rank, kind in enumerate(catalogue())}
    return tuple(sorted(findings, key=lambda each: (_SEVERITY[each.severity], order[each.kind], each.first_step)))


def _diagnosed(run: Run) -> Diagnosis:
    """As if the run had ended."""
    found: list[Finding] = []
    clean: list[str] = []
    skipped: dict[str, str] = {}
    crashed: dict[str, str] = {}
    remembered = Remembered(run)
    for kind, module in catalogue().items():
        try:
            with np.errstate(all="ignore"):  # a run that ended in NaN makes NaN, which every rule expects
                findings = list(module.check(remembered))
        except Missing as missing:
            skipped[kind] = str(missing)
        except Exception as error:  # a broken rule must not hide what the others see
            crashed[kind] = f"{type(error).__name__}: {error}"
        else:
            found += findings
            if not findings:
                clean.append(kind)
    remembered.forget()
    kept = _sorted(_one_alarm_a_fault(found, crashed))
    absorbed = {each.kind for each in found} - {each.kind for each in kept}
    return Diagnosis(kept, tuple(clean), skipped, crashed, tuple(sorted(absorbed)))


def _one_alarm_a_fault(found: list[Finding], crashed: dict[str, str]) -> list[Finding]:
    """Findings that another one explains become its evidence. What is only information explains no alarm."""
    kept = list(found)
    for finding in found:
        if finding not in kept:
            continue
        others = [other for other in kept if other is not finding and (finding.alarm or not other.alarm)]
        absorbed = [other for other in others if _says(finding, "explains", crashed, other)]
        if absorbed:
            kept = [other for other in kept if other not in absorbed]
            latest_first = sorted(absorbed, key=lambda each: -each.first_step)
            since = {each.kind: float(each.first_step) for each in latest_first}
            evidence = dict(finding.evidence) | {f"explains {kind} since step": step for kind, step in since.items()}
            kept[kept.index(finding)] = replace(finding, evidence=evidence)
    return _without_what_gives_way(kept, crashed)


def _without_what_gives_way(found: list[Finding], crashed: dict[str, str]) -> list[Finding]:
    """A rule may say `gives_way(finding)` of an alarm that tells that something is wrong, but not what."""
    yielding = [each for each in found if _says(each, "gives_way", crashed)]
    others = any(each.alarm and each not in yielding for each in found)
    return [each for each in found if each not in yielding] if others else found


def _says(finding: Finding, question: str, crashed: dict[str, str], *others: Finding) -> bool:
    """What the finding's rule answers; no where it has no answer, or fails."""
    answer = getattr(catalogue()[finding.kind], question, None)
    try:
        return answer is not None and bool(answer(finding, *others))
    except Exception as error:
        crashed[finding.kind] = f"{type(error).__name__}: {error}"
        return False


def explain(kind: str) -> dict[str, str]:
    """The rule's explanation: heading -> Markdown with LaTeX. `KeyError` for an unknown kind."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (catalogue()[kind].__doc__ or "").splitlines()[1:]:
        if line.startswith("## "):
            lines = sections.setdefault(line[3:].strip(), [])
        else:
            lines.append(line)
    return {heading: "\n".join(text).strip() for heading, text in sections.items()}


def title(kind: str, cause: str | None = None) -> str:
    """The rule's name for people: the first line of its explanation, without the final stop, or what its `TITLES` has
    for a cause of which that is not true."""
    module = catalogue()[kind]
    return getattr(module, "TITLES", {}).get(cause) or (module.__doc__ or kind).splitlines()[0].rstrip(".")
