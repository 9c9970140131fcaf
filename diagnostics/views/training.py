"""Loss, norms and learning rate over updates: one brush for all, findings as lanes, raw values behind smoothed ones."""

from functools import partial

import numpy as np
import streamlit as st

from diagnostics.charts import logged, timeline
from diagnostics.charts.parts import below_zero, wide
from diagnostics.charts.timeline_data import datasets, rate_lines
from diagnostics.run import Run
from diagnostics.views.common import View, downloads, picture, run_page
from diagnostics.views.text import plural

WINDOWS = {"off": 1, "10": 10, "50": 50, "200": 200, "1000": 1000}
MOST_LOGGED = 6  # numbers of `monitor.log` drawn unasked: three rows


def page() -> None:
    run_page(body)


def body(view: View) -> None:
    steps = view.run.steps("scalars")
    if len(steps) < 2:
        st.info(
            "A curve takes two updates, and fewer are recorded. `monitor.step(loss, closure)` records one each time; "
            "it belongs after `optimizer.step()`."
        )
        return
    first, last = int(steps[0]), int(steps[-1])
    window, log = controls()
    shown = chosen_range(view, first, last)
    chart(view, (first, last), shown, window, log)
    names = logged.names(view.run)
    tables = ("scalars", *(["logged"] if names else []), "curvature", "events")
    logged_numbers(view, names)
    downloads({name: partial(view.run.table, name) for name in tables}, "training")
    events(view)


def controls() -> tuple[int, bool]:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        smoothing = st.segmented_control(
            "Smoothing over updates", list(WINDOWS), key="smoothing", default="off", required=True, bind="query-params"
        )
        log = st.toggle("Logarithmic loss", value=True, key="log", bind="query-params")
    return WINDOWS.get(smoothing or "off", 1), log


def chosen_range(view: View, first: int, last: int) -> tuple[int, int] | None:
    """The updates shown, from the slider, which is also the keyboard's way to zoom and what the address holds."""
    keep_range_of_one_run(view.entry.id, first, last)
    low, high = st.slider(
        "Updates shown", first, last, (first, last), key="range", bind="query-params", on_change=moved
    )
    low, high = max(first, low), min(last, high)
    st.session_state["range shown"] = (low, high)
    return None if (low, high) == (first, last) or high <= low else (low, high)


def keep_range_of_one_run(id: str, first: int, last: int) -> None:
    """Another run starts whole, no address asks for more than there is, and what reached the end of a run that
    trains follows it."""
    if st.session_state.setdefault("range of", id) != id:
        st.session_state["range of"] = id
        redraw()
        st.session_state["range"] = (first, last)
    elif "range" in st.session_state:
        low, high = st.session_state["range"]
        high = last if high == st.session_state.get("range end") else high
        st.session_state["range"] = (min(max(first, low), last), min(max(first, high), last))
    st.session_state["range end"] = last


def moved() -> None:
    """The slider's callback, which also comes when a growing run moved its end: only a person's move counts."""
    if tuple(st.session_state["range"]) != st.session_state.get("range shown"):
        redraw()


def redraw() -> None:
    """A moved slider needs a chart whose brush begins there: a brush cannot be written otherwise."""
    st.session_state["drawn"] = st.session_state.get("drawn", 0) + 1


def brushed(key: str, first: int, last: int) -> None:
    """The brush moves the slider, so that the address names what is shown."""
    found = st.session_state[key]["selection"].get(timeline.BRUSH, {}).get("step")
    low, high = (int(np.floor(found[0])), int(np.ceil(found[1]))) if found else (first, last)
    st.session_state["range"] = (max(first, low), min(last, max(high, low + 1)))


@st.cache_data(max_entries=64, show_spinner=False)
def specification(options: timeline.Options) -> dict:
    return timeline.specification(options)


def chart(view: View, ends: tuple[int, int], shown: tuple[int, int] | None, window: int, log: bool) -> None:
    run, findings = view.run, view.diagnosis.findings
    version = st.session_state.get("drawn", 0)
    start = st.session_state.setdefault("starts", {}).setdefault(version, shown)
    data = datasets(run, findings, shown, window)
    negative = view.derived(negative_loss)
    options = timeline.Options(
        log_loss=log and not negative,
        log_rates=view.derived(wide_rates),
        smoothed=window > 1,
        lanes=len(findings),
        start=start,
    )
    key = f"timeline-{version}"
    st.vega_lite_chart(
        None,
        {**specification(options), "datasets": data},
        key=key,
        width="stretch",
        on_select=partial(brushed, key, *ends),
        selection_mode=timeline.BRUSH,
        # Without numbers that grow while the run trains: a new text would draw the whole chart anew.
        alt=f"Loss, norms and learning rate over updates, {plural(len(findings), 'finding')} marked",
    )
    st.caption("Long runs are thinned to the smallest and the largest value of each pixel: no spike is lost.")
    if log and negative:
        st.caption("The axis of the loss is linear: some losses are negative, and a logarithmic one would hide them.")


def logged_numbers(view: View, names: list[str]) -> None:
    """What the script gave to `monitor.log`, a chart each."""
    if len(names) > MOST_LOGGED:
        names = st.multiselect("Logged numbers", names, default=names[:MOST_LOGGED], key=f"logged of {view.entry.id}")
    for index in range(0, len(names), 2):
        for column, name in zip(st.columns(2, gap="large"), names[index : index + 2], strict=False):
            with column:
                picture(view, logged.logged, name, key=f"logged-{name}", alt_text=f"{logged.title(name)} over updates")


def negative_loss(run: Run) -> bool:
    return below_zero(run.table("scalars", ["loss"])["loss"])


def wide_rates(run: Run) -> bool:
    """Of the rate used, or of it and the largest stable one, over more than two decades: a crossing near the lower edge
    of a linear axis is not seen."""
    lines = rate_lines(run.table("scalars", ["step", "lr"]), run.table("curvature", ["step", "stability"]))
    return wide(lines["value"].loc[lines["name"] == "learning rate"]) or wide(lines["value"], 100.0)


def events(view: View) -> None:
    table = view.run.table("events")
    if len(table):
        st.header("Events", divider="gray")
        st.dataframe(table, hide_index=True, key="events", alt="Events of the run")
