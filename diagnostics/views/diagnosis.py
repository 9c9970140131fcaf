"""One run: what is wrong first, then why, what to try, and the pictures that show it."""

from functools import partial

import streamlit as st

from diagnostics import charts
from diagnostics.charts.theme import SIGNS
from diagnostics.rules import Diagnosis, Finding, explain, first_clause, title
from diagnostics.run import warnings
from diagnostics.views import data, examples, pages, verdict
from diagnostics.views.common import View, downloads, picture, run_page, worst_alarm
from diagnostics.views.overview import CURVES
from diagnostics.views.text import card_title, md, names, number, prose, reason, title_says_all

ONE_LINE = 140  # characters, at the width of a laptop


def page() -> None:
    run_page(body)


def body(view: View) -> None:
    diagnosis = view.diagnosis
    headline(view)
    told(view)
    for number_, finding in enumerate(diagnosis.findings):
        card(view, finding, f"finding-{number_}")
    st.header("The run", divider="gray")
    overview(view, diagnosis)
    examples.section(view)
    checked(diagnosis)


def headline(view: View) -> None:
    """One sentence that says what matters most, and what else has to be known."""
    st.title(verdict.headline(view.verdict), anchor=False)
    for note in view.verdict.notes:
        st.warning(prose(note), icon=":material/warning:")


def told(view: View) -> None:
    """What the user was warned of while the run was recorded: it says how far to trust what follows."""
    lines = warnings(view.run)
    if lines:
        more_of_them = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        latest = lines[0] if len(lines[0]) <= ONE_LINE else first_clause(lines[0])
        label = f":orange[{SIGNS['warning'].glyph}] While recording: {prose(latest)}{more_of_them}"
        with st.expander(label, key="warnings"):
            st.markdown("\n".join(f"- {prose(line)}" for line in lines))


def card(view: View, finding: Finding, key: str) -> None:
    sign = SIGNS[finding.severity]
    texts = explain(finding.kind)
    with st.container(border=True, key=key):
        st.header(f":{sign.markdown}[{sign.glyph}] {prose(card_title(finding))}", anchor=False)
        labels(finding)
        seen(finding)
        words, pictures = st.columns([5, 6], gap="large")
        with words:
            why(finding, texts)
            attempt(finding)
            same_in_samples(view, finding)
        with pictures:
            for index, chart in enumerate(finding.charts):
                alt_text = chart.title if view.live else f"{chart.title}. {finding.summary}"
                picture(view, charts.draw, chart, finding, key=f"{key}-{index}", alt_text=alt_text)
        more(view, finding, texts, key)


def labels(finding: Finding) -> None:
    sign = SIGNS[finding.severity]
    with st.container(horizontal=True, gap="small"):
        st.badge(f"{sign.word}", color=sign.markdown)  # pyright: ignore[reportArgumentType]
        if finding.cause:
            st.badge(f"cause: {finding.cause.replace('-', ' ')}", color="gray")
        st.badge(finding.span, color="gray")
        if finding.layers:
            st.markdown(f":gray-badge[{md(names(finding.layers))}]")  # a badge would read $x$ as a formula


def seen(finding: Finding) -> None:
    if not title_says_all(finding):
        st.markdown(f"**Seen.** {prose(finding.summary)}")
    if finding.formula:
        st.latex(finding.formula)


def why(finding: Finding, texts: dict[str, str]) -> None:
    st.markdown("**Why it happens.** " + reason(texts["Why it happens"], finding.cause))


def attempt(finding: Finding) -> None:
    if finding.remedies:
        st.markdown("**What to try**\n\n" + "\n".join(f"{i}. {prose(r)}" for i, r in enumerate(finding.remedies, 1)))


def same_in_samples(view: View, finding: Finding) -> None:
    """The sample run with this fault, and the same run cured."""
    example = data.example(finding.kind, finding.cause)
    if example is None:
        return
    if example.fault != view.entry.id:
        what = "The same" if example.cause == finding.cause else "Another cause"
        pages.link("diagnosis", f"{what} in a sample run: {md(example.fault)}", run=example.fault)
    if example.cure:
        pages.compare_link("Fault and cure side by side", [example.fault, example.cure])


def more(view: View, finding: Finding, texts: dict[str, str], key: str) -> None:
    with st.expander("All numbers, the full explanation, and when this is wrong"):
        numbers, text = st.columns([2, 3], gap="large")
        numbers.table(
            {"": list(finding.evidence), "value": [number(v, 4) for v in finding.evidence.values()]},
            border="horizontal",
        )
        for heading, content in texts.items():
            text.markdown(f"**{heading}**\n\n{content}")
        with numbers:
            names_ = dict.fromkeys(chart.table for chart in finding.charts)
            downloads({name: partial(view.run.table, name) for name in names_}, key)


def overview(view: View, diagnosis: Diagnosis) -> None:
    """The run's main curves, less those that a card above shows already, and a learning rate that never changed."""
    worst = worst_alarm(view)
    above = {(chart.table, chart.columns) for finding in diagnosis.findings for chart in finding.charts}
    rates = view.run.table("scalars", ["lr"])["lr"].to_numpy()
    if (rates == rates[:1]).all():
        above.add(("scalars", ("lr",)))
    shown = [chart for chart in CURVES if (chart.table, chart.columns) not in above]
    for index in range(0, len(shown), 2):
        for column, chart in zip(st.columns(2, gap="large"), shown[index : index + 2], strict=False):
            with column:
                key = f"overview-{chart.columns[0]}"
                picture(view, charts.draw, chart, worst, key=key, alt_text=chart.title)
    downloads({name: partial(view.run.table, name) for name in ("scalars", "layers", "units", "curvature")}, "overview")


def checked(diagnosis: Diagnosis) -> None:
    clean, skipped = st.columns(2, gap="large")
    with clean:
        st.header("Looked for and not found", divider="gray")
        st.markdown(
            "\n".join(f"- :green[✓] Not found: {md(title(kind))}" for kind in diagnosis.clean)
            or "There is nothing that could be ruled out."
        )
    with skipped:
        st.header("Could not be checked", divider="gray")
        lines = [f"- {md('; '.join(map(title, kinds)))}: {prose(why)}" for why, kinds in diagnosis.unchecked.items()]
        lines += [
            f"- :red[✕] {md(title(kind))}: the rule itself failed, {prose(error)}"
            for kind, error in diagnosis.crashed.items()
        ]
        st.markdown("\n".join(lines) or "Everything could be checked.")
