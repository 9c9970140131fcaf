"""The dashboard: `streamlit run dashboard.py [-- RUNS_FOLDER]`. Navigation and theme, nothing else."""

from pathlib import Path

import streamlit as st

from diagnostics.views import pages

st.set_page_config("Diagnostics", page_icon=Path(__file__).with_name(".streamlit") / "icon.png", layout="wide")
current = st.navigation(pages.all_pages(), position="hidden")
pages.bar()
current.run()
pages.warm_up()
