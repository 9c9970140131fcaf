"""Two or more runs side by side: how they were set up differently, what became of each, and their curves."""

from functools import partial

import pandas as pd
import streamlit as st

from diagnostics.charts import compare, logged
from diagnostics.charts.theme import SIGNS, VERDICTS
from diagnostics.rules import first_clause
from diagnostics.views import data, pages
from diagnostics.views.common import View, downloads, figure, no_runs, view
from diagnostics.views.text import md, prose

PLACES = {"a": "Run", "b": "beside", "c": "and", "d": "and also"}  # address parameter -> label of its picker

CURVES = (
    ("scalars", "loss", "Loss"),
    ("scalars", "grad_norm", "Gradient norm"),
    ("curvature", "stability", "Stability ratio s: unstable above 1"),
)


def page() -> None:
    listed = data.entries()
    if not listed:
        no_runs()
        return
    offer_pairs(listed)
    views = {id: found for id in choose(list(listed), default_pair(listed)) if (found := view(listed[id][0]))}
    if len(views) < 2:
        st.info("Choose at least two runs above, or one of the pairs of a fault and its cure.")
        return
    settings(views)
    outcomes(views)
    curves(views)


def choose(ids: list[str], default: list[str]) -> list[str]:
    """One picker a run; the first two begin with `default`."""
    chosen = []
    for number, (place, column) in enumerate(zip(PLACES, st.columns(len(PLACES)), strict=True)):
        first = ids.index(default[number]) if number < len(default) else None
        chosen.append(
            column.selectbox(PLACES[place], ids, index=first, key=place, bind="query-params", placeholder="none")
        )
    return list(dict.fromkeys(id for id in chosen if id in ids))


def pairs(listed: dict) -> dict[str, tuple[str, str]]:
    """Fault -> the listed pair of sample runs."""
    found = [(each.fault, each.cure) for each in data.examples() if each.cure]
    return {fault.removeprefix("sample/"): (fault, cure) for fault, cure in found if fault in listed and cure in listed}


def default_pair(listed: dict) -> list[str]:
    """The two latest of the user's own runs; without two, a fault and its cure."""
    own = [id for id, (entry, run) in listed.items() if not entry.sample and run.meta["status"] != "broken"]
    return own[:2] if len(own) > 1 else list(next(iter(pairs(listed).values()), ()))


def offer_pairs(listed: dict) -> None:
    def take() -> None:
        if picked := st.session_state["pair"]:
            for place, id in zip(PLACES, [*offered[picked], None, None], strict=True):
                st.session_state[place] = id

    offered = pairs(listed)
    if offered:
        st.pills("A fault beside its cure", list(offered), key="pair", on_change=take)


def settings(views: dict[str, View]) -> None:
    """What was different: first, because it is the reason for the rest."""
    runs = {id: each.run for id, each in views.items()}
    rows = compare.differences(runs)
    st.title(
        f"{len(rows)} settings differ" if len(rows) != 1 else f"Only one setting differs: {md(next(iter(rows)))}",
        anchor=False,
    )
    if rows:
        names = pd.Index(list(rows), name="setting")  # no column: a run may have that name
        table = pd.DataFrame(list(rows.values()), index=names, columns=list(runs))
        st.dataframe(table, key="settings", alt="Settings in which the runs differ")
    else:
        st.caption("Optimizer, hyperparameters, config and model are the same as far as they were recorded.")


def outcomes(views: dict[str, View]) -> None:
    for column, (id, each) in zip(st.columns(len(views), gap="medium", border=True), views.items(), strict=True):
        with column:
            st.subheader(md(id), anchor=False)
            alarms = each.diagnosis.alarms
            found = each.verdict
            said = [(VERDICTS[found.sign], found.headline)]  # of the worst alarm, if there is one
            said += [(SIGNS[finding.severity], first_clause(finding.summary)) for finding in alarms[1:3]]
            for sign, text in said:
                st.markdown(f":{sign.markdown}[{sign.glyph}] {prose(text)}")
            pages.link("diagnosis", "Its diagnosis", run=id)


def curves(views: dict[str, View]) -> None:
    runs = {id: each.run for id, each in views.items()}
    names = dict.fromkeys(name for run in runs.values() for name in logged.names(run))
    for table, column, title in (*CURVES, *(("logged", name, logged.title(name)) for name in names)):
        drawn = compare.overlaid(runs, table, column, title)
        if drawn is None:
            st.caption(f"{md(title)}: not recorded in any of these runs.")
        else:
            figure(drawn, f"compare-{table}-{column}", f"{title} of {', '.join(runs)} over updates")
        if column == "stability" and (shorter := [id for id, run in runs.items() if compare.clips(run)]):
            st.caption(
                f"{md(', '.join(shorter))}: gradients are clipped there. s is of steps at the full rate, and clipping "
                "shortens them: above 1 such a run need not be unstable."
            )
    downloads({f"{i} {id}": partial(run.table, "scalars") for i, (id, run) in enumerate(runs.items(), 1)}, "compare")
