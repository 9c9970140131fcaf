"""A run's diagnosis as one HTML file that opens offline: no script, no font, no picture from elsewhere.

Charts are SVG, formulas MathML, both made here. Whatever comes from the run is escaped; only the explanations, which
are part of this package, are rendered as Markdown. Does not need streamlit.
"""

import json
import re
import time
from html import escape
from os import PathLike
from pathlib import Path

import vl_convert
from latex2mathml.converter import convert
from markdown_it import MarkdownIt

from diagnostics import charts
from diagnostics.charts import logged
from diagnostics.charts.parts import Drawn
from diagnostics.charts.theme import SIGNS, VERDICTS
from diagnostics.rules import Chart, Diagnosis, Finding, Verdict, diagnose, explain, title, verdict
from diagnostics.run import Run, summarize, warnings
from diagnostics.views.overview import CURVES
from diagnostics.views.text import STATES, card_title, number, reason, settings, title_says_all

OVERVIEW = (*CURVES, Chart("heatmap", "layers", ("grad_norm",), "Gradient norm of each parameter tensor", log=True))
WIDTH = 620

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin: 0 0 .5rem; }
article { border: 1px solid #8886; border-radius: .5rem; padding: 1rem 1.25rem; margin: 1.25rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
.muted { opacity: .75; font-size: .93rem; }
.tag { background: #8882; border-radius: .3rem; padding: .1rem .45rem; margin-right: .4rem; font-size: .9rem; }
svg { max-width: 100%; height: auto; }
math[display=block] { margin: .7rem 0; overflow-x: auto; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; }
code { background: #8882; padding: 0 .2rem; border-radius: .2rem; }
"""

# Text takes the page's colour, in light and in dark.
INK = "currentColor"
CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelColor": INK, "titleColor": INK, "domainColor": INK, "tickColor": INK, "gridColor": "#8884"},
    "legend": {"labelColor": INK, "titleColor": INK},
    "title": {"color": INK},
}


def write(run: Run, path: str | PathLike) -> None:
    """Write the report of `run` to `path`."""
    Path(path).write_text(page(run), encoding="utf-8")


def page(run: Run) -> str:
    diagnosis = diagnose(run)
    name = escape(run.meta["name"] or "run")
    body = [
        f"<p class=muted>{name} · {facts(run)}</p>",
        *headline(verdict(summarize(run, diagnosis), run.meta["status"])),
        *(f"<p>{SIGNS['warning'].glyph} While recording: {code(line)}</p>" for line in warnings(run)),
        *(card(run, finding) for finding in diagnosis.findings),
        overview(run, diagnosis),
        checked(diagnosis),
        f"<p class=muted>Written {time.strftime('%Y-%m-%d %H:%M')}.</p>",
    ]
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{name}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>"
    )


def facts(run: Run) -> str:
    group = (run.meta["hyperparameters"] or [{}])[0]
    said = [STATES[run.meta["status"]], settings(run.meta["optimizer"], group), f"{run.last_step:,} updates"]
    return escape(" · ".join(part for part in said if part))


def headline(found: Verdict) -> list[str]:
    sign = VERDICTS[found.sign]
    head = f'<h1><span style="color:{sign.colour}">{sign.glyph}</span> {code(found.headline)}</h1>'
    return [head, *(f"<p><b>{code(note)}</b></p>" for note in found.notes)]


def card(run: Run, finding: Finding) -> str:
    """Seen, why, what to try; beside them the pictures, below them everything else."""
    sign, texts = SIGNS[finding.severity], explain(finding.kind)
    tags = [sign.word, finding.span, *([f"cause: {finding.cause}"] if finding.cause else [])]
    formula = convert(finding.formula, display="block") if finding.formula else ""
    tries = "".join(f"<li>{code(remedy)}</li>" for remedy in finding.remedies)
    said = finding.summary
    seen = "" if title_says_all(finding) else f"<p><b>Seen.</b> {code(said)}</p>"
    pictures = "".join(svg(charts.draw(run, chart, finding), f"{chart.title}. {said}") for chart in finding.charts)
    numbers = "".join(f"<tr><td>{escape(k)}<td>{number(v, 4)}</tr>" for k, v in finding.evidence.items())
    rest = "".join(f"<h3>{escape(heading)}</h3>{markdown(text)}" for heading, text in texts.items())
    return f"""<article><h2><span style="color:{sign.colour}">{sign.glyph}</span> {code(card_title(finding))}</h2>
<p>{"".join(f"<span class=tag>{escape(tag)}</span>" for tag in tags)}</p>
<div class=columns><div>{seen}
<p><b>Why it happens.</b></p>{markdown(reason(texts.get("Why it happens", ""), finding.cause))}{formula}
<p><b>What to try</b></p><ol>{tries}</ol></div><div>{pictures}</div></div>
<details><summary>All numbers and the full explanation</summary><table>{numbers}</table>{rest}</details></article>"""


def overview(run: Run, diagnosis: Diagnosis) -> str:
    worst = next(iter(diagnosis.alarms), None)
    pictures = "".join(svg(charts.draw(run, chart, worst), chart.title) for chart in OVERVIEW)
    pictures += "".join(svg(logged.logged(run, name), logged.title(name)) for name in logged.names(run))
    return f"<h2>The run</h2><div class=columns>{pictures}</div>"


def checked(diagnosis: Diagnosis) -> str:
    tick = VERDICTS["clean"].glyph
    clean = "".join(f"<li>{tick} Not found: {escape(title(kind))}</li>" for kind in diagnosis.clean)
    missing = [("; ".join(map(title, rules)), why) for why, rules in diagnosis.unchecked.items()]
    missing += [(title(rule), error) for rule, error in diagnosis.crashed.items()]
    skipped = "".join(f"<li>{escape(rules)}: {escape(why)}</li>" for rules, why in missing)
    return (
        f"<div class=columns><div><h2>Looked for and not found</h2><ul>{clean or '<li>nothing'}</ul></div>"
        f"<div><h2>Could not be checked</h2><ul>{skipped or '<li>nothing'}</ul></div></div>"
    )


def svg(chart: Drawn, label: str) -> str:
    """The chart as inline SVG with its meaning as label."""
    spec = json.loads(chart.properties(width=WIDTH, padding=8).to_json(format="vega-lite", validate=False))
    drawn = vl_convert.vegalite_to_svg(spec, config=CONFIG)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def code(text: str) -> str:
    """A sentence of a finding: escaped, with `code` marked."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def markdown(text: str) -> str:
    """Markdown with $LaTeX$ and $$LaTeX$$ of this package -> HTML with MathML."""
    formulas: list[str] = []

    def hold(match: re.Match) -> str:
        block, inline = match.groups()
        formulas.append(convert(block or inline, display="block" if block else "inline"))
        return f"FORMULA{len(formulas) - 1}ALUMROF"

    held = re.sub(r"\$\$(.+?)\$\$|\$(.+?)\$", hold, text, flags=re.DOTALL)
    html = MarkdownIt("commonmark", {"html": False}).render(held)
    return re.sub(r"FORMULA(\d+)ALUMROF", lambda match: formulas[int(match.group(1))], html)
