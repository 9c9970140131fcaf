"""Layer by step: one heat map at a time, and the history of the layer that was clicked."""

from functools import partial

import pandas as pd
import streamlit as st

from diagnostics.charts import layers
from diagnostics.rules import Finding
from diagnostics.views import data
from diagnostics.views.common import View, downloads, picture, run_page, worst_alarm
from diagnostics.views.text import number


def page() -> None:
    run_page(body)


def body(view: View) -> None:
    available = view.derived(layers.recorded)
    if not available:
        st.info(
            "No per-layer measurement in this run. They are made on every `every`-th update: "
            "`diagnostics.watch(model, optimizer, run_dir, every=10)`."
        )
        return
    choice = st.segmented_control(
        "Quantity", list(available), key="quantity", default=next(iter(available)), required=True, bind="query-params"
    )
    quantity = available.get(str(choice)) or next(iter(available.values()))
    overview = view.derived(layers.overview, quantity)
    layer = chosen_layer(overview.field.names, quantity.column)
    alarm = worst_alarm(view)
    key = f"map-{quantity.column}"
    picture(
        view,
        layers.heat_map,
        overview.field,
        alarm,
        key=key,
        alt_text=f"{quantity.title}, layers from top to bottom over updates",
        on_select=partial(clicked, key, quantity.column),
        selection_mode="cell",
    )
    st.caption(
        f"{quantity.meaning} Click a row for its history. Each column keeps the "
        f"{'smallest' if quantity.worst_is_low else 'largest'} value of its updates; "
        f"the colours reach from the 1st to the 99th percentile. {measured_until(view, quantity)}"
    )
    words = f"{quantity.title} of {layer} over updates"
    picture(view, layers.history, quantity, layer, alarm, key="history", alt_text=words)
    last_values(overview.extremes, quantity.title)
    downloads({name: partial(view.run.table, name) for name in ("layers", "units", "symmetry")}, "layers")
    if not view.live:
        data.ahead(lambda: prepare(view, available, alarm))


def measured_until(view: View, quantity: layers.Quantity) -> str:
    """Where measurements end before the run does: those that the budget spaced out are far apart."""
    steps, last = view.run.steps(quantity.table), view.run.last_step
    if not len(steps) or last - steps[-1] < last / 10:  # less is a narrow strip, and no question
        return ""
    spaced = "budget" in set(view.run.table("events", ["kind"])["kind"])
    why = ": the budget spaces measurements wider as a run goes on" if spaced else ""
    return f"Last measured at update {steps[-1]:,} of {last:,}{why}."


def prepare(view: View, available: dict[str, layers.Quantity], alarm: Finding | None) -> None:
    """The maps one click away: of a long run each is a second's work."""
    for quantity in available.values():
        view.drawn(layers.heat_map, view.derived(layers.overview, quantity).field, alarm)


def chosen_layer(names: list[str], column: str) -> str:
    """The layer whose history is shown; the picker is also the keyboard's way to choose it."""
    key = f"layer-{column}"
    return st.selectbox("Layer", names, key=key, bind="query-params", width=420) or names[0]


def clicked(key: str, column: str) -> None:
    rows = st.session_state[key]["selection"].get("cell", [])
    if rows:
        st.session_state[f"layer-{column}"] = rows[0]["layer"]


def last_values(ends: pd.DataFrame, title: str) -> None:
    """The same as text, for those who cannot see colours."""
    with st.expander("Values per layer as a table"):
        words = {name: ends[name].map(number) for name in ("first", "last", "smallest", "largest")}
        st.dataframe(ends.assign(**words), hide_index=True, key="layer-values", alt=f"{title} per layer")
