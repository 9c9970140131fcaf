"""Diagnoses kept on disk: a long run is diagnosed once, not once in every server. No streamlit here."""

import hashlib
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from diagnostics import rules
from diagnostics.rules import Chart, Diagnosis, Finding, diagnose
from diagnostics.run import Run, kept


def diagnosis(run: Run) -> Diagnosis:
    """As `diagnose` gives it; from the cache if the run and the rules are what they were."""
    if run.meta["status"] == "running":
        return diagnose(run)
    key = kept.key(run, _rules())
    try:
        return from_json(kept.recall("diagnoses", key))
    except (TypeError, KeyError, AttributeError):  # not there, or of another shape
        made = diagnose(run)
    if not made.crashed:  # a rule that failed may do better next time
        kept.keep("diagnoses", key, to_json(made))
    return made


@lru_cache(maxsize=1)
def _rules() -> str:
    """Changes with any line of any rule."""
    digest = hashlib.sha256()
    for file in sorted(Path(rules.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    found = [asdict(finding) | {"evidence": _plain(finding.evidence)} for finding in diagnosis.findings]
    return asdict(diagnosis) | {"findings": found}


def _plain(evidence: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in evidence.items()}


def from_json(value: dict[str, Any]) -> Diagnosis:
    findings = tuple(_finding(each) for each in value["findings"])
    return Diagnosis(findings, tuple(value["clean"]), value["skipped"], value["crashed"], tuple(value["absorbed"]))


def _finding(value: dict[str, Any]) -> Finding:
    drawn = [Chart(**{**c, "columns": tuple(c["columns"]), "layers": tuple(c["layers"])}) for c in value["charts"]]
    tuples = {"charts": tuple(drawn), "layers": tuple(value["layers"]), "remedies": tuple(value["remedies"])}
    return Finding(**{**value, **tuples})
