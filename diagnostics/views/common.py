"""What every page of a run begins with: which run, what it is, and a sentence where it cannot be shown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from diagnostics.rules import Diagnosis, Finding, Verdict
from diagnostics.run import Run, RunError, unreachable
from diagnostics.views import data, pages
from diagnostics.views.text import STATES, age, md, plural, settings

Drawn = Any  # an Altair chart
REFRESH_SECONDS = 2.0

FIRST_RUN = """import diagnostics

with diagnostics.watch(model, optimizer, "runs/my-first-run") as monitor:
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        monitor.step(loss, closure=lambda: criterion(model(x), y))
"""


@dataclass(frozen=True)
class View:
    """The run a page shows, as it was on disk when the page was drawn."""

    entry: data.Entry
    run: Run
    state: data.State

    @property
    def diagnosis(self) -> Diagnosis:
        return data.diagnosis(self.entry.path, self.state)

    @property
    def verdict(self) -> Verdict:
        return data.verdict(self.entry.path, self.state)

    def derived(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(run, *args)`, worked out once until the run changes."""
        return data.derived(self.entry.path, self.state, function, *args)

    def drawn(self, draw: Callable[..., Drawn], *args: Any) -> tuple[dict, dict]:
        """Specification and data of the chart `draw(run, *args)`."""
        return self.derived(_detached, draw, *args)

    @property
    def live(self) -> bool:
        return self.run.meta["status"] == "running"


def choose() -> data.Entry | None:
    """The run picker. Its value is the address parameter `run`, which only ever looks up a listed run.

    By hand, because a bound widget loses its value where two pages share it (Streamlit 1.67).
    """
    listed = data.entries()
    if not listed:
        no_runs()
        return None
    wanted = pages.current_run()
    known = next((id for id in (wanted, f"sample/{wanted}") if id in listed), None)
    st.session_state["picked"] = known if wanted else next(iter(listed))
    chosen = st.selectbox(
        "Run",
        list(listed),
        index=0 if st.session_state["picked"] else None,
        key="picked",
        on_change=pages.remember_run,
        width=420,
        placeholder="Choose a run",
    )
    if chosen is None:
        not_found(str(wanted))
        return None
    st.session_state["run"] = chosen
    return listed[chosen][0]


def not_found(wanted: str) -> None:
    st.warning(f"There is no run {md(wanted)} in {md(data.folder())} or among the samples. Choose one above, or:")
    st.page_link(pages.page("runs"), label="See all runs")  # without the run that is not there


def no_runs() -> None:
    if trouble := unreachable(data.folder()):
        st.error(md(trouble), title=f"{md(data.folder())} cannot be listed")
        return
    st.info(
        f"No run in {md(data.folder())} yet. Wrap your training loop as below, run it, and reload this page; "
        "or start the dashboard with another folder: `streamlit run dashboard.py -- FOLDER`."
    )
    st.code(FIRST_RUN, language=None)  # the highlighting would be too faint to read


def view(entry: data.Entry) -> View | None:
    """Open a run, or say in a sentence why it cannot be."""
    try:
        return View(entry, *data.current(entry.path))
    except (RunError, OSError) as error:
        st.error(md(error), icon=":material/error:", title="This run cannot be read")
        return None


def run_page(body: Callable[[View], None]) -> None:
    """The frame of a page about one run: picker, facts, then `body`, which refreshes by itself while the run trains."""
    entry = choose()
    if entry is None:
        return
    first = view(entry)
    if first is None:
        return

    def refreshed() -> None:
        now = view(entry)
        if now is None:
            return
        facts(now)
        body(now)
        if first.live and not now.live:
            st.rerun()  # the run ended: draw once more without the timer

    st.fragment(refreshed, run_every=REFRESH_SECONDS if first.live else None)()


def facts(view: View) -> None:
    """One line: state, optimizer, learning rate, updates, age."""
    run, meta = view.run, view.run.meta
    groups = meta.get("hyperparameters") or [{}]
    steps = run.steps("scalars")
    parts = [
        STATES.get(meta["status"], meta["status"]),
        md(settings(meta.get("optimizer", ""), groups[0])),
        plural(int(steps[-1]) if len(steps) else 0, "update"),
        plural(int(meta.get("parameters") or 0), "parameter"),
        age(meta["created"]) if meta.get("created") else "",
        "sample run" if view.entry.sample else "",
    ]
    st.caption(" · ".join(part for part in parts if part))


def picture(view: View, draw: Callable[..., Drawn], *args: Any, key: str, alt_text: str, **options: Any) -> None:
    """The chart `draw(run, *args)`, drawn once until the run changes."""
    spec, frames = view.drawn(draw, *args)
    _show(spec, frames, key, alt_text, **options)


def _detached(run: Run, draw: Callable[..., Drawn], *args: Any) -> tuple[dict, dict]:
    from diagnostics.charts.parts import detached  # altair, which takes half a second, only where something is drawn

    return detached(draw(run, *args))


def figure(chart: Drawn, key: str, alt_text: str, **options: Any) -> None:
    """A chart over the full width. Its own toolbar shows the data and saves a picture."""
    from diagnostics.charts.parts import detached

    _show(*detached(chart), key, alt_text, **options)


def _show(spec: dict, frames: dict, key: str, alt_text: str, **options: Any) -> None:
    """Sent as a specification that stays the same and data that changes, so that a live run does not flicker;
    `alt_text` must therefore not count updates either.
    """
    st.vega_lite_chart(None, {**spec, "datasets": frames}, width="stretch", key=key, alt=alt_text, **options)


def downloads(tables: dict[str, Callable[[], pd.DataFrame]], key: str) -> None:
    """A row of CSV buttons, name -> table; nothing is made before one is pressed."""
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.caption("Data")
        for name, table in tables.items():
            st.download_button(
                f"{md(name)}.csv",
                lambda table=table: table().to_csv(index=False),
                f"{name}.csv",
                "text/csv",
                key=f"{key}-{name}-csv",
                type="tertiary",
                icon=":material/download:",
                on_click="ignore",
            )


def begin_anew(view: View, **starts: Any) -> None:
    """Widgets keep what was chosen by their key: where another run comes, they start as that run wants it."""
    shown = f"run of {next(iter(starts))}"
    if st.session_state.setdefault(shown, view.entry.id) != view.entry.id:
        st.session_state[shown] = view.entry.id
        for key, value in starts.items():
            st.session_state[key] = value


def follow(view: View, key: str, latest: int, **starts: Any) -> None:
    """Of a slider over estimates: what stood on the last one of a run that trains goes on to the next."""
    begin_anew(view, **{key: latest}, **starts)
    before = f"last {key}"
    if key in st.session_state and st.session_state[key] == st.session_state.get(before):
        st.session_state[key] = latest
    st.session_state[before] = latest


def worst_alarm(view: View) -> Finding | None:
    """The finding whose span the overview charts shade."""
    return next(iter(view.diagnosis.alarms), None)
