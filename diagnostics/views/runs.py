"""All runs: state, worst finding, and the shape of the loss, so that the one that matters is found at a glance."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from diagnostics.charts.theme import VERDICTS
from diagnostics.rules import verdict
from diagnostics.run import Run, RunError, readable, stamp
from diagnostics.views import data, pages
from diagnostics.views.common import no_runs
from diagnostics.views.text import STATES

Frame = Any  # a pandas.DataFrame; charts.parts has the same name, but brings altair
ROW_HEIGHT = 40


def page() -> None:
    st.title("Runs", anchor=False)
    listed = list(data.entries().values())
    if listed:
        browse(pd.DataFrame([row(entry, run) for entry, run in listed]))
    if not any(not entry.sample for entry, _ in listed):
        no_runs()


def browse(table: Frame) -> None:
    """Your runs, newest first; then the samples, those with something to see first."""
    samples = table["source"] == "sample"
    ordered: Frame = pd.concat([table[~samples], table[samples].sort_values("alarms", ascending=False, kind="stable")])
    shown = filtered(ordered)
    if shown.empty:
        st.info("No run matches these filters. Clear the search or choose another state.")
    else:
        draw(shown)


def row(entry: data.Entry, run: Run) -> dict:
    """One line of the table; a run that cannot be read has its state and name only."""
    meta = run.meta
    line = {
        "id": entry.id,
        "run": meta["name"] or entry.id,
        "state": STATES[meta["status"]],
        "worst": "",
        "alarms": 0,
        "loss": [],
        "updates": 0,
        "optimizer": meta["optimizer"],
        "lr": None,
        "created": pd.Timestamp(meta["created"], unit="s") if meta["created"] else pd.NaT,
        "source": "sample" if entry.sample else "yours",
    }
    if meta["status"] == "broken":
        return line | {"worst": "⚠ cannot be read"}
    try:
        summary = data.summary(entry.path, data.State(stamp(entry.path), meta["status"]))
        return line | measured(summary, meta["status"])
    except (RunError, OSError) as error:
        return line | {"worst": f"⚠ {readable(error)}"}


def measured(summary: dict, status: str) -> dict:
    counts, found = summary["counts"], verdict(summary, status)
    return {
        "worst": f"{VERDICTS[found.sign].glyph} {found.cell}",
        "alarms": counts.get("critical", 0) + counts.get("warning", 0),
        "loss": sparkline(summary["sparkline"]),
        "updates": summary["steps"],
        "lr": summary["lr"],
    }


def sparkline(loss: list[float | None]) -> list[float]:
    """The finite values, as decades if all are positive: a divergence must not flatten the rest."""
    values = np.array([np.nan if value is None else value for value in loss], float)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0:
        values = np.log10(values)
    return values.tolist()


def filtered(table: pd.DataFrame) -> pd.DataFrame:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input("Search", key="q", bind="query-params", placeholder="name, optimizer, finding", width=212)
        states = st.pills(
            "State", sorted(set(table["state"])), selection_mode="multi", key="state", bind="query-params"
        )
        only = st.toggle("Only with alarms", key="alarms", bind="query-params")
    words = table[["run", "worst", "optimizer"]].astype(str).agg(" ".join, axis=1)
    keep = words.str.contains(text or "", case=False, regex=False)
    keep &= table["state"].isin(states) if states else True
    return table.loc[keep & ((table["alarms"] > 0) | (not only))].reset_index(drop=True)


def draw(table: pd.DataFrame) -> None:
    """The name opens a run; ticking several compares them."""

    def opened() -> None:
        st.session_state["open"] = table["id"][st.session_state["clicked"]["row"]]

    config = {
        "run": st.column_config.ButtonColumn(
            "Run", pinned=True, width=200, alignment="left", type="tertiary", key="clicked", on_click=opened
        ),
        "worst": st.column_config.TextColumn("Worst finding", width=212),
        "alarms": st.column_config.NumberColumn("Alarms", width=62),
        "loss": st.column_config.LineChartColumn("Loss", width=98),
        "state": st.column_config.TextColumn("State", width=98),
        "updates": st.column_config.NumberColumn("Updates", format="localized", width=72),
        "optimizer": st.column_config.TextColumn("Optimizer", width=82),
        "lr": st.column_config.NumberColumn("Learning rate", format="%.3g", width=98),
        "created": st.column_config.DatetimeColumn("Recorded", format="distance", width=104),
        "source": st.column_config.TextColumn("Source", width=68),
    }
    picked = st.dataframe(
        table,
        key="table",
        hide_index=True,
        column_order=list(config),
        column_config=config,
        row_height=ROW_HEIGHT,
        height=min(len(table), 18) * ROW_HEIGHT + 38,
        on_select="rerun",
        selection_mode="multi-row",
        alt="Runs with worst finding, number of alarms, loss, state and settings",
    )
    if "open" in st.session_state:
        pages.go("diagnosis", run=st.session_state.pop("open"))
    actions([str(table["id"][i]) for i in picked["selection"]["rows"] if i < len(table)])


def actions(ids: list[str]) -> None:
    """What can be done with the ticked runs; also the way for those who use the keyboard."""
    if not ids:
        st.caption(
            "A run's name opens its diagnosis. Tick runs to compare them (keyboard: arrows, then Shift and Space)."
        )
        return
    with st.container(horizontal=True):
        if len(ids) == 1:
            pages.link("diagnosis", "Open its diagnosis", run=ids[0])
        pages.compare_link(f"Compare {len(ids)} runs" if len(ids) > 1 else "Compare it with another", ids)
