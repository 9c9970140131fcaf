"""The lecture as a map: each phenomenon with its idea, its formula, a picture to play with, and where we see it."""

import streamlit as st

from diagnostics.rules import title
from diagnostics.views import data, lecture_shapes, lecture_steps, pages
from diagnostics.views.lecture_topics import TOPICS, Topic
from diagnostics.views.text import md

PICTURES = {
    "convexity": lecture_shapes.convexity,
    "local minima": lecture_shapes.local_minima,
    "saddle points": lecture_shapes.saddle_points,
    "plateaux": lecture_shapes.plateaux,
    "cliffs": lecture_shapes.cliffs,
    "ravines": lecture_steps.ravines,
    "learning rate": lecture_steps.learning_rate,
    "normalization": lecture_steps.normalization,
    "momentum": lecture_steps.momentum,
    "RMSprop and Adam": lecture_steps.adaptive,
}


def page() -> None:
    chosen = st.pills(
        "The lecture's phenomena",
        list(TOPICS),
        key="topic",
        default="learning rate",
        required=True,
        bind="query-params",
    )
    name = chosen if chosen in TOPICS else "learning rate"
    topic = TOPICS[name]
    st.title(topic.title, anchor=False)
    words, picture = st.columns([5, 7], gap="large")
    with words:
        st.markdown(topic.idea)
        for formula in topic.formulas:
            st.latex(formula)
        st.markdown(f"**What this tool looks at.** {topic.looks}")
        where(topic)
    with picture:
        st.fragment(PICTURES[name])()


def where(topic: Topic) -> None:
    """The findings that report it, and the sample runs that show it and its cure."""
    st.markdown("**Reported as** " + ", ".join(f"*{md(title(kind))}*" for kind in topic.kinds))
    listed = data.entries()
    shown = [each for each in data.examples() if each.kind in topic.kinds and each.fault in listed]
    for each in shown:
        with st.container(horizontal=True, gap="small", vertical_alignment="center"):
            pages.link("diagnosis", md(each.fault.removeprefix("sample/")), run=each.fault)
            if each.cure in listed:
                pages.compare_link("beside its cure", [each.fault, str(each.cure)])
