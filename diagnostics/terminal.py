"""What the command line prints: findings and runs as plain text. Pure; nothing here reads a run.

Names and messages come from a run directory, which may be somebody else's: control characters never reach the terminal.
"""

import math
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_CODES = {"critical": "1;31", "warning": "1;33", "info": "36", "ok": "32", "dim": "2", "bold": "1"}
_BLOCKS = "▁▂▃▄▅▆▇█"


def printable(text: Any) -> str:
    """Text without control characters, which could repaint a terminal."""
    return "".join(character if character.isprintable() else "�" for character in str(text))


def paint(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if colour and style in _CODES else text


def number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else printable(value)


def finding_lines(finding: Any, colour: bool) -> list[str]:
    """Severity, kind, cause and layers; since when; what was seen; what to try."""
    cause = f" ({finding.cause})" if finding.cause else ""
    head = f"{paint(finding.severity.upper(), finding.severity, colour)} {paint(finding.kind, 'bold', colour)}{cause}"
    lines = [f"  {head}, {finding.span}"]
    if finding.layers:
        lines += _wrapped("layers: ", listed(finding.layers))
    lines += _wrapped("", finding.summary)
    lines += [line for remedy in finding.remedies for line in _wrapped("try: ", remedy)]
    return lines


def verdict_lines(verdict: Any, colour: bool) -> list[str]:
    """What is said of the run as a whole, and what else has to be known."""
    style = {"clean": "ok", "open": "bold"}.get(verdict.sign) or verdict.sign
    head, *rest = _wrapped("", verdict.headline, "  ")
    notes = [line for note in verdict.notes for line in _wrapped("note: ", note, "  ")]
    painted = [f"  {paint(head.strip(), style, colour)}"]
    return [*painted, *rest, *notes]


def diagnosis_lines(diagnosis: Any, verdict: Any, warnings: Iterable[str], colour: bool) -> list[str]:
    """`verdict`: of the run; its headline would say the first alarm twice. `warnings`: told while it was recorded."""
    lines = [line for finding in diagnosis.findings for line in [*finding_lines(finding, colour), ""]]
    lines += verdict_lines(verdict, colour)[1 if diagnosis.alarms else 0 :]
    lines += [line for each in warnings for line in _wrapped("while recording: ", each, "  ")]
    if diagnosis.clean:
        lines += _wrapped("checked, nothing found: ", ", ".join(diagnosis.clean), "  ")
    for missing, rules in diagnosis.unchecked.items():
        lines += _wrapped("not checked: ", f"{', '.join(rules)} ({missing})", "  ")
    for rule, error in diagnosis.crashed.items():
        lines += _wrapped(paint("rule failed: ", "warning", colour), f"{rule}: {error}", "  ")
    return lines


def settings(values: Mapping[str, Any]) -> str:
    """`lr 0.1, momentum 0.9`: what is unset or off is left out."""
    given = {key: value for key, value in values.items() if value is not None and value is not False}
    return ", ".join(f"{printable(key)} {number(value)}" for key, value in given.items())


def listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(printable(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Left-aligned columns, two blanks apart."""
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def sparkline(values: Sequence[float | None], width: int = 24) -> str:
    """The loss in `width` characters, on a logarithmic scale where it is positive; gaps where it was not finite."""
    values = values[:: max(1, math.ceil(len(values) / width))]
    finite = [value for value in values if value is not None]
    scale = math.log if finite and min(finite) > 0 else float
    heights = [None if value is None else scale(value) for value in values]
    low, high = min(map(scale, finite), default=0.0), max(map(scale, finite), default=0.0)
    span = (high - low) or 1.0
    return "".join(" " if h is None else _BLOCKS[round((h - low) / span * (len(_BLOCKS) - 1))] for h in heights)


def _wrapped(label: str, text: str, indent: str = "    ") -> list[str]:
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    wrapper = textwrap.TextWrapper(width, indent, indent + "  ", break_on_hyphens=False)
    return wrapper.wrap(label + printable(text))
