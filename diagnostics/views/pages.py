"""The pages, in the order of the navigation bar, and the ways from one to another."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from threading import Timer

import streamlit as st

# name -> (title, icon); the name is the module and the address
PAGES = {
    "runs": ("Runs", ":material/list:"),
    "diagnosis": ("Diagnosis", ":material/troubleshoot:"),
    "training": ("Training", ":material/show_chart:"),
    "layers": ("Layers", ":material/grid_on:"),
    "curvature": ("Curvature", ":material/terrain:"),
    "whatif": ("What if", ":material/tune:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "lecture": ("The lecture", ":material/school:"),
}


def all_pages() -> list:
    return [page(name) for name in PAGES]


def page(name: str):
    title, icon = PAGES[name]
    return st.Page(_body(name), title=title, icon=icon, url_path="" if name == "runs" else name, default=name == "runs")


def _body(name: str) -> Callable[[], None]:
    """The page's function; its module is imported when the page is first opened, so that the first paint is early."""

    def body() -> None:
        import_module(f"diagnostics.views.{name}").page()

    body.__name__ = name
    return body


@cache
def warm_up() -> None:
    """Once a server: import the other pages while the first is looked at. Altair alone takes half a second."""
    timer = Timer(0.5, lambda: [import_module(f"diagnostics.views.{name}") for name in PAGES])
    timer.daemon = True
    timer.start()


def bar() -> None:
    """The navigation: links that keep the chosen run, so that every address is complete. The built-in bar drops it."""
    with st.container(horizontal=True, gap="small", key="navigation"):
        for name, (title, _) in PAGES.items():
            link(name, title)


def current_run() -> str | None:
    """The run the address names, else the one last looked at."""
    return st.query_params.get("run") or st.session_state.get("run")


def remember_run() -> None:
    st.query_params["run"] = st.session_state["picked"]


def link(name: str, label: str, *, run: str | None = None, **params: str) -> None:
    """A link to another page; it keeps the chosen run unless another is named."""
    _, icon = PAGES[name]
    query = {"run": run or current_run(), **params}
    st.page_link(page(name), label=label, icon=icon, query_params={k: v for k, v in query.items() if v})


def compare_link(label: str, ids: list[str]) -> None:
    """A link to the comparison of up to four runs."""
    link("compare", label, **dict(zip("abcd", ids, strict=False)))


def go(name: str, **params: str) -> None:
    st.switch_page(page(name), query_params=params)
