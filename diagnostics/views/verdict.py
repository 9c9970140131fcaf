"""The diagnosis in one line, the same on every page that judges a run, and why it may be milder than one estimate."""

import numpy as np
import streamlit as st

from diagnostics.charts.own import CLIPPED, RESCALED, own_name
from diagnostics.charts.theme import VERDICTS
from diagnostics.rules import Verdict, first_clause
from diagnostics.run import Run
from diagnostics.views import pages
from diagnostics.views.common import View
from diagnostics.views.text import number, prose

OF_THE_STEP = ("lr-unstable", "lr-oscillation")  # alarms that say themselves that the step is too long


def headline(found: Verdict) -> str:
    """One sentence that says what matters most, as Markdown."""
    sign = VERDICTS[found.sign]
    return f":{sign.markdown}[{sign.glyph}] {prose(found.headline)}"


def compact(view: View) -> None:
    """The same above what another page says, with a link to the whole; a link alone would be cut off on a phone."""
    if len(view.run.table("scalars", ["step"])):
        with st.container(horizontal=True, gap="small", vertical_alignment="center"):
            st.markdown(headline(view.verdict), width="content")
            pages.link("diagnosis", "The whole diagnosis")


def excuse(view: View, step: int) -> None:
    """Why a ratio above 1 at this update is not what the diagnosis is about."""
    if any(finding.kind in OF_THE_STEP for finding in view.diagnosis.alarms):
        return
    before, after = clipped(view.run, step)
    edge = [each for each in view.diagnosis.findings if each.kind == "edge-of-stability"]
    if after < CLIPPED * before:
        st.markdown(
            f"The ratio leaves out clipping, which shortened the gradient of step {step:,} from {number(before)} to "
            f"{number(after)}: updates of bounded length cannot grow without end."
        )
    elif edge:
        said = first_clause(edge[0].summary)
        st.markdown(f"That is no fault here: {prose(said[:1].lower() + said[1:])}.")
    else:
        st.markdown("A ratio above 1 is a fault only where the loss is harmed as well, which was not found.")


def growth(view: View, step: int, words: str) -> None:
    """A direction of negative curvature, and why it is no fault where nothing is."""
    usual = "Most networks have such directions: they hold a run up only where its gradient is near 0 as well."
    st.markdown(f"At step {step:,} {words}. {'' if view.diagnosis.alarms else usual}")


def clipped(run: Run, step: int) -> tuple[float, float]:
    """Norm of the gradient before and after clipping; NaN where it is not known, or where the optimizer rescales what
    is left of it."""
    group = (run.meta["hyperparameters"] or [{}])[0]
    table = run.table("scalars", ["grad_norm_unclipped", "grad_norm"], first=step, last=step)
    if not len(table) or own_name(run.meta["optimizer"], group) in RESCALED:
        return np.nan, np.nan
    before, after = table.to_numpy(float)[0]
    return float(before), float(after)
