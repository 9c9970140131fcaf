"""Words and numbers as the pages show them. No streamlit here."""

import math
import re
import time

from diagnostics.charts.own import moments
from diagnostics.rules import Finding, first_clause, title
from diagnostics.run import is_number, readable

STATES = {
    "running": "▶ training",
    "finished": "■ finished",
    "failed": "✕ failed",
    "interrupted": "◼ interrupted",
    "broken": "⚠ broken",
}


def md(text: object) -> str:
    """Text from a run - names, notes, paths - made harmless and literal inside Markdown.

    Labels, captions and metrics are Markdown: a run named `![](http://host/x.png)` would make the browser fetch it.
    """
    return re.sub(r"([\\`*_{}\[\]()#+\-.!$:~<>|&@/=\"'])", r"\\\1", readable(text).replace("\n", " "))


def number(value: float, digits: int = 3) -> str:
    """Short and readable: 0.00312, 1,200, 3.1e-09, NaN, ∞."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    size = abs(float(f"{value:.{digits - 1}e}"))  # rounded: 999.7 has four digits before its point
    if not 1e-4 <= size < 1e6:
        return f"{value:.{digits}g}"
    fixed = f"{value:,.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"
    return fixed.rstrip("0").rstrip(".") if "." in fixed else fixed


def age(created: float, now: float | None = None) -> str:
    """How long ago a Unix time was, in its largest unit."""
    seconds = max(0.0, (time.time() if now is None else now) - created)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def names(layers: tuple[str, ...], most: int = 3) -> str:
    """The first few names and how many more there are."""
    rest = len(layers) - most
    return ", ".join(layers[:most]) + (f" and {rest} more" if rest > 0 else "")


def reason(text: str, cause: str | None) -> str:
    """The paragraph of "Why it happens" that begins with the cause's name in italics; the first if none does."""
    paragraphs = text.strip().split("\n\n")
    mine = f"*{(cause or '').replace('-', ' ')}*"
    return next((each for each in paragraphs if each.lower().startswith(mine)), paragraphs[0])


def prose(text: str) -> str:
    """A sentence of a finding inside Markdown: `code` stays code, everything else is literal."""
    pieces = text.replace("\n", " ").split("`")
    if len(pieces) % 2 == 0:  # an unpaired backtick
        return md(text)
    return "".join(f"`{piece}`" if i % 2 else md(piece) for i, piece in enumerate(pieces))


def card_title(finding: Finding) -> str:
    """Of an alarm its kind; of what is only worth knowing the fact, as its kind is not what is wrong."""
    return title(finding.kind, finding.cause) if finding.alarm else first_clause(finding.summary)


def title_says_all(finding: Finding) -> bool:
    """Whether nothing is left to say below that heading."""
    return card_title(finding) == finding.summary.rstrip(".")


def tex(value: float) -> str:
    """A number inside LaTeX: 8.6e-05 as a power of ten."""
    mantissa, _, exponent = number(value).partition("e")
    text = mantissa.replace(",", r"{,}").replace("∞", r"\infty")
    return rf"{text} \cdot 10^{{{int(exponent)}}}" if exponent else text


def settings(optimizer: str, group: dict) -> str:
    """The optimizer and what sets its step: "SGD, lr 0.1, momentum 0.9"."""
    said = [optimizer]
    if is_number(group.get("lr")):
        said.append(f"lr {number(group['lr'])}")
    if is_number(group.get("momentum")) and group["momentum"]:
        said.append(f"momentum {number(group['momentum'])}" + (" (Nesterov)" if group.get("nesterov") else ""))
    if betas := moments(group):
        said.append(f"betas {', '.join(map(number, betas))}")
    return ", ".join(word for word in said if word)
