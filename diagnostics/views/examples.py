"""What the loss got: the kept examples of one batch, of the step that is chosen."""

from functools import partial

import streamlit as st

from diagnostics.charts import examples
from diagnostics.views.common import View, downloads, follow, picture


def section(view: View) -> None:
    """Nothing where `watch` was not asked for examples."""
    steps = [int(step) for step in view.derived(examples.kept)]
    if not steps:
        return
    st.header("What the loss got", divider="gray")
    step = steps[-1]
    if len(steps) > 1:
        follow(view, "batch", step)
        step = st.select_slider("Batch of update", steps, value=step, key="batch", bind="query-params")
    picture(
        view,
        examples.of_step,
        step,
        "Examples of the batch: does each target belong to its input?",
        key="examples",
        alt_text="Inputs, targets and answers of some examples of one batch",
    )
    st.caption(
        "Targets are read off the gradient that came to the answers, so they are those of the loss, whatever the loop "
        "meant. Answers are in their unit: of classes the most probable one, with its probability. Pictures are made "
        "smaller, and shaded from the smallest to the largest number of all that are shown."
    )
    downloads({"examples": partial(view.run.table, "examples")}, "examples")
