"""The report: one file, nothing from elsewhere, every finding in it, and a run's text only as text."""

import re
from html import unescape
from html.parser import HTMLParser

import pandas as pd
import pytest

from diagnostics.rules import Diagnosis, catalogue, diagnose, explain, title
from diagnostics.run import Run, load
from diagnostics.views import report
from diagnostics.views.data import SAMPLES


class Page(HTMLParser):
    """What would make a browser fetch or run something."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.scripts = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attrs)
        links = [value for name, value in attrs if name in ("src", "href", "xlink:href", "data") and value]
        self.fetched += [link for link in links if not link.startswith(("data:", "#"))]


@pytest.mark.parametrize("name", ["lr-unstable", "dead-units-huge-step", "healthy-mlp"])
def test_a_report_holds_every_finding_and_needs_nothing_else(name, tmp_path):
    run = load(SAMPLES / name)
    report.write(run, tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    page, shown = Page(text), unescape(re.sub(r"<[^>]+>", "", text))
    assert page.fetched == [] and page.scripts == 0
    findings = diagnose(run).findings
    for finding in findings:
        assert finding.summary.replace("`", "") in shown
    assert text.count("<svg ") == sum(len(finding.charts) for finding in findings) + len(report.OVERVIEW)


def test_what_comes_from_a_run_is_text():
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    frame = pd.DataFrame({"step": [1, 2, 3], "loss": 1.0, "lr": 0.1, "grad_norm": 1.0})
    layers = pd.DataFrame({"step": 1, "layer": [hostile], "grad_norm": [1.0]})
    run = Run.from_frames({"name": hostile, "optimizer": hostile}, {"scalars": frame, "layers": layers})
    page = Page(report.page(run))
    assert page.scripts == 0 and page.fetched == []


@pytest.mark.parametrize("kind", catalogue())
def test_every_formula_of_every_explanation_becomes_mathml(kind):
    html = "".join(report.markdown(text) for text in explain(kind).values())
    prose = re.sub(r"<(math|code|pre)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert "$" not in prose and "\\" not in prose
    assert html.count("<math") >= 1 or kind in ("wiring", "non-finite")


def test_every_rule_that_could_not_be_checked_is_named():
    """Several for want of the same measurement in one line; two that failed alike are two all the same."""
    skipped = {"ravine": "no curvature", "saddle-point": "no curvature", "symmetry": "no units"}
    diagnosis = Diagnosis(skipped=skipped, crashed={"cliff": "KeyError: 'x'", "plateau": "KeyError: 'x'"})
    shown = report.checked(diagnosis)
    assert all(title(rule) in unescape(shown) for rule in (*skipped, *diagnosis.crashed))
    assert shown.count("no curvature") == 1 and shown.count("no units") == 1 and unescape(shown).count("KeyError") == 2
