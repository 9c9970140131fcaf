"""Every page runs without an exception, on every sample run and on everything that is not one."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from diagnostics.rules import catalogue, diagnose, title
from diagnostics.run import Run, RunWriter, runs, stamp
from diagnostics.views import data, pages, training
from diagnostics.views.lecture_topics import TOPICS
from diagnostics.views.text import age, first_clause, md, number, prose, tex

PAGES = list(pages.PAGES)
RUN_PAGES = ["diagnosis", "training", "layers", "curvature", "whatif"]
IN_CI = pytest.mark.exhaustive
SAMPLES = {f"sample/{Path(run.path).name}": run for run in runs(data.SAMPLES)}


def opened(name: str, folder: Path | str, monkeypatch, **params: str | list[str]) -> AppTest:
    """A page as a browser would open it, with the runs of `folder`."""
    monkeypatch.setenv("DIAGNOSTICS_RUNS", str(folder))
    app = AppTest.from_string(f"from diagnostics.views import {name}\n{name}.page()", default_timeout=30)
    for key, value in params.items():
        app.query_params[key] = value
    return app.run()


def texts(app: AppTest) -> str:
    kinds = (app.title, app.header, app.markdown, app.caption, app.info, app.error, app.success, app.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def train(folder: Path | str, steps: int = 20, **meta) -> RunWriter:
    """A run being written: real least squares on one weight, so that its curvature is known to be 2."""
    writer = RunWriter(
        folder, {"name": Path(folder).name, "optimizer": "SGD", "hyperparameters": [{"lr": 0.1}], **meta}
    )
    weight = 1.0
    for step in range(1, steps + 1):
        scalars = {"time": time.time(), "loss": weight**2, "lr": 0.1, "grad_norm": abs(2 * weight)}
        writer.append("scalars", step, scalars)
        weight -= 0.1 * 2 * weight
    writer.flush()
    return writer


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RUN_PAGES[1:])  # the diagnosis is tested run by run below
def test_every_sample_run_opens_on_every_page(name, tmp_path, monkeypatch):
    """One session that walks from run to run, as a person does with the picker; a sixth of them on each page."""
    app = opened(name, tmp_path, monkeypatch)
    for id in list(SAMPLES)[RUN_PAGES.index(name) :: 6]:
        app.selectbox(key="picked").set_value(id).run()
        assert not app.exception, f"{id}: {app.exception[0].value}"
        assert app.selectbox(key="picked").value == id


@pytest.mark.parametrize(
    "id",
    [
        pytest.param(id, marks=() if at % 4 == 0 else pytest.mark.by_hand if at % 2 else IN_CI)
        for at, id in enumerate(SAMPLES)
    ],
)
def test_the_diagnosis_of_a_sample_run_names_each_finding(id, tmp_path, monkeypatch):
    diagnosis = diagnose(SAMPLES[id])
    app = opened("diagnosis", tmp_path, monkeypatch, run=id)
    shown = texts(app)
    for finding in diagnosis.findings:
        assert prose(finding.summary.rstrip(".")) in shown
        assert all(prose(remedy) in shown for remedy in finding.remedies)
    facts = [title(each.kind, each.cause) if each.alarm else first_clause(each.summary) for each in diagnosis.findings]
    headers = [header.value for header in app.header]
    assert all(prose(fact) in header for fact, header in zip(facts, headers, strict=False)), headers
    assert len(app.get("vega_lite_chart")) >= len(diagnosis.findings)
    top = app.title[0].value
    assert prose(first_clause(diagnosis.alarms[0].summary)) in top if diagnosis.alarms else "No alarm" in top


def test_examples_that_were_kept_are_shown_of_the_batch_that_is_chosen(tmp_path, monkeypatch):
    steps = [str(step) for step in sorted(set(SAMPLES["sample/plateau-shifted-targets"].steps("examples")))]
    app = opened("diagnosis", tmp_path, monkeypatch, run="sample/plateau-shifted-targets")
    slider = app.select_slider(key="batch")
    assert not app.exception and slider.options == steps and str(slider.value) == steps[-1]
    slider.set_value(int(steps[0])).run()
    assert not app.exception and "What the loss got" in [header.value for header in app.header]
    app = opened("diagnosis", tmp_path, monkeypatch, run="sample/lr-fitting")
    assert "What the loss got" not in [header.value for header in app.header]


def test_a_finding_leads_to_its_sample_and_its_cure(tmp_path, monkeypatch):
    app = opened("diagnosis", tmp_path, monkeypatch, run="sample/lr-unstable")
    links = [element.proto for element in app.get("page_link")]
    assert any("lr-fitting" in link.query_string for link in links)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_of_the_lecture_has_its_picture(topic, tmp_path, monkeypatch):
    app = opened("lecture", tmp_path, monkeypatch, topic=topic)
    assert not app.exception
    assert app.title[0].value == TOPICS[topic].title
    assert app.get("vega_lite_chart")
    assert set(TOPICS[topic].kinds) <= set(catalogue())


def test_every_kind_of_finding_that_the_lecture_treats_is_on_its_map():
    mapped = {kind for topic in TOPICS.values() for kind in topic.kinds}
    assert set(catalogue()) - mapped <= {"non-finite", "wiring"}  # these two the lecture does not treat


def test_the_list_shows_every_sample_run_with_its_verdict(tmp_path, monkeypatch):
    app = opened("runs", tmp_path, monkeypatch)
    table = app.dataframe[0].value
    assert set(table["id"]) == set(SAMPLES)
    unstable = table[table["id"] == "sample/lr-unstable"].iloc[0]
    assert unstable["worst"].startswith("▲ lr unstable") and unstable["source"] == "sample"


def test_the_list_is_filtered_by_text_and_by_alarm(tmp_path, monkeypatch):
    app = opened("runs", tmp_path, monkeypatch, q="unstable")
    assert set(app.dataframe[0].value["id"]) == {id for id in SAMPLES if "unstable" in id}
    app = opened("runs", tmp_path, monkeypatch, alarms="true")
    assert (app.dataframe[0].value["alarms"] > 0).all()
    app = opened("runs", tmp_path, monkeypatch, q="no such run")
    assert "No run matches" in texts(app)


def test_ticked_runs_can_be_compared(tmp_path, monkeypatch):
    app = opened("runs", tmp_path, monkeypatch)
    app.session_state["table"] = {"selection": {"rows": [0, 1], "columns": [], "cells": []}}
    app.run()
    assert any("compare" in link.proto.page for link in app.get("page_link"))


def test_a_fault_stands_beside_its_cure_by_default(tmp_path, monkeypatch):
    app = opened("compare", tmp_path, monkeypatch)
    assert not app.exception and {app.selectbox(key="a").value, app.selectbox(key="b").value} <= set(SAMPLES)
    assert "setting" in app.title[0].value


def test_the_latest_runs_of_ones_own_are_compared_by_default(tmp_path, monkeypatch):
    for created, name in enumerate(("oldest", "newer", "newest")):
        train(tmp_path / name, created=1e9 + created).close("finished")
    app = opened("compare", tmp_path, monkeypatch)
    assert (app.selectbox(key="a").value, app.selectbox(key="b").value) == ("newest", "newer")


def test_a_page_of_layers_says_until_when_they_were_measured(tmp_path, monkeypatch):
    for name, steps in (("short", 40), ("long", 400)):
        writer = train(tmp_path / name, steps=steps)
        writer.append_many("layers", 38, ["a"], {"grad_norm": [1.0]})
        writer.event(30, "budget" if name == "long" else "other", "spaced wider")
        writer.close("finished")
    assert "Last measured at update 38 of 400: the budget" in texts(opened("layers", tmp_path, monkeypatch, run="long"))
    assert "Last measured" not in texts(opened("layers", tmp_path, monkeypatch, run="short"))


def test_the_axis_of_rates_is_logarithmic_where_the_largest_stable_one_spans_decades():
    """s of 2, then of 1e-6: a rate of 0.1 against 0.05 and 1e5."""
    scalars = pd.DataFrame({"step": [1, 2, 3], "loss": 1.0, "lr": 0.1, "grad_norm": 1.0})
    for last, wide in ((1e-6, True), (1.0, False)):
        curvature = pd.DataFrame({"step": [2, 3], "stability": [2.0, last]})
        assert training.wide_rates(Run.from_frames({}, {"scalars": scalars, "curvature": curvature})) is wide


def test_an_empty_folder_says_how_to_record_a_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SAMPLES", tmp_path / "no samples")
    data.listing.clear()
    for name in PAGES:
        app = opened(name, tmp_path, monkeypatch)
        assert not app.exception
        if name != "lecture":
            assert "diagnostics.watch(" in texts(app)
    data.listing.clear()


@pytest.mark.parametrize("name", PAGES)
def test_a_broken_run_is_a_sentence_on_every_page(name, tmp_path, monkeypatch):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{ not json")
    app = opened(name, tmp_path, monkeypatch, run="torn")
    assert not app.exception
    if name in RUN_PAGES:
        assert "torn" in texts(app) and "Next" in texts(app)


@pytest.mark.parametrize("name", RUN_PAGES)
def test_a_run_without_any_update_says_so(name, tmp_path, monkeypatch):
    RunWriter(tmp_path / "fresh", {"name": "fresh"}).close("finished")
    app = opened(name, tmp_path, monkeypatch, run="fresh")
    assert not app.exception
    assert app.info or "no update was recorded" in app.title[0].value


@pytest.mark.parametrize("name", ["curvature", "whatif"])
def test_a_run_without_curvature_says_what_to_add(name, tmp_path, monkeypatch):
    train(tmp_path / "plain").close("finished")
    app = opened(name, tmp_path, monkeypatch, run="plain")
    assert "closure=lambda" in app.info[0].value


@pytest.mark.parametrize("name", RUN_PAGES)
def test_a_run_that_trains_is_shown_as_far_as_it_is(name, tmp_path, monkeypatch):
    writer = train(tmp_path / "live", steps=5)
    app = opened(name, tmp_path, monkeypatch, run="live")
    assert not app.exception and "▶ training" in texts(app) and "5 updates" in texts(app)
    writer.append("scalars", 6, {"loss": 0.1, "lr": 0.1, "grad_norm": 0.1})
    writer.flush()
    assert "6 updates" in texts(app.run())
    writer.close("finished")
    assert "■ finished" in texts(app.run())


KILLED = """
import os, signal, sys
from diagnostics.run import RunWriter

writer = RunWriter(sys.argv[1], {"name": "killed"})
for step in range(1, 6):
    writer.append("scalars", step, {"loss": 1.0, "lr": 0.1, "grad_norm": 1.0})
writer.flush()
print("written", flush=True)
sys.stdin.read()
"""


def test_a_run_whose_process_is_killed_while_it_is_watched_is_interrupted(tmp_path, monkeypatch):
    """No file changes then: the pages must ask for the process itself."""
    command = [sys.executable, "-c", KILLED, tmp_path / "killed"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"written\n"
        app, table = opened("diagnosis", tmp_path, monkeypatch, run="killed"), opened("runs", tmp_path, monkeypatch)
        assert "▶ training" in texts(app) and "▶ training" in set(table.dataframe[0].value["state"])
        files = stamp(tmp_path / "killed")
        process.kill()
    assert "◼ interrupted" in texts(app.run()) and stamp(tmp_path / "killed") == files
    data.listing.clear()  # which is two seconds old at most
    assert "▶ training" not in set(table.run().dataframe[0].value["state"])


def test_a_loss_that_is_nan_from_the_first_step_opens(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path / "nan", {"name": "nan"})
    for step in range(1, 9):
        writer.append("scalars", step, {"loss": math.nan, "lr": 0.1, "grad_norm": math.nan})
    writer.close("finished")
    for name in RUN_PAGES:
        assert not opened(name, tmp_path, monkeypatch, run="nan").exception


def test_what_if_starts_at_the_run_and_follows_its_sliders(tmp_path, monkeypatch):
    """`lr-fitting` takes 1 / lambda_max: eta lambda is 1, and 2.5 times as much must be called unstable."""
    app = opened("whatif", tmp_path, monkeypatch, run="sample/lr-fitting")
    assert app.metric[0].value == "1" and "Stable" in app.title[0].value
    slider = app.select_slider(key="eta")
    rate = float(slider.value)
    slider.set_value(min(slider.options, key=lambda text: abs(float(text) - 2.5 * rate))).run()
    assert "Unstable" in app.title[0].value
    assert float(app.metric[0].value) == pytest.approx(2.5, rel=0.1)


def test_an_address_cannot_open_a_path(tmp_path, monkeypatch):
    train(tmp_path / "outside").close("finished")
    (tmp_path / "runs").mkdir()
    train(tmp_path / "runs" / "mine").close("finished")
    app = opened("diagnosis", tmp_path / "runs", monkeypatch, run="../outside")
    assert not app.title and r"no run \.\.\/outside in" in app.warning[0].value


def test_a_run_that_is_not_there_is_said_to_be_and_can_be_chosen(tmp_path, monkeypatch):
    train(tmp_path / "mine").close("finished")
    app = opened("diagnosis", tmp_path, monkeypatch, run="gone")
    assert not app.exception and app.selectbox(key="picked").value is None
    assert "gone" in app.warning[0].value and app.get("page_link")[0].proto.query_string == ""
    app.selectbox(key="picked").set_value("mine").run()
    assert not app.warning and app.title and app.query_params["run"] in ("mine", ["mine"])


def test_a_sample_run_is_found_by_its_bare_name(tmp_path, monkeypatch):
    train(tmp_path / "mine").close("finished")
    app = opened("diagnosis", tmp_path, monkeypatch, run="lr-unstable")
    assert app.selectbox(key="picked").value == "sample/lr-unstable"


@pytest.mark.parametrize("root", ["memory://dashboard-{}", pytest.param("file://{}", marks=pytest.mark.exhaustive)])
def test_a_folder_at_a_url_is_listed_and_its_runs_are_opened(root, tmp_path, monkeypatch):
    url = root.format(tmp_path if "file" in root else tmp_path.name)
    train(f"{url}/far").close("finished")
    live = train(f"{url}/live", steps=5)
    table = opened("runs", url, monkeypatch).dataframe[0].value.set_index("id")
    assert table.loc["far", "updates"] == 20 and table.loc["far", "source"] == "yours"
    for name in RUN_PAGES:
        app = opened(name, url, monkeypatch, run="far")
        assert not app.exception and app.selectbox(key="picked").value == "far" and "20 updates" in texts(app)
    app = opened("training", url, monkeypatch, run="live")
    assert "▶ training" in texts(app) and "5 updates" in texts(app)
    live.append("scalars", 6, {"loss": 0.1, "lr": 0.1, "grad_norm": 0.1})
    live.flush()
    assert "6 updates" in texts(app.run())
    live.close("finished")
    assert "■ finished" in texts(app.run())


def test_a_folder_that_cannot_be_reached_says_why(tmp_path, monkeypatch):
    app = opened("runs", "nosuch://bucket", monkeypatch)
    assert not app.exception and "nosuch" in app.error[0].value and not app.code


def test_a_hostile_name_stays_text(tmp_path, monkeypatch):
    name = "![x](http://example.com/x.png) :red[a] $x$"
    train(tmp_path / "hostile", name=name, optimizer=name).close("finished")
    app = opened("diagnosis", tmp_path, monkeypatch, run="hostile")
    assert "![" not in texts(app).replace(r"\!", "")


def test_markdown_is_escaped_and_code_is_kept():
    assert md("a_b*c[d](e)") == r"a\_b\*c\[d\]\(e\)"
    assert prose("set `lr=0.1` now: *never*") == r"set `lr=0.1` now\: \*never\*"


def test_numbers_are_short_and_never_wrong():
    assert [number(value) for value in (0.1234567, 1234.5, 3e-9, 5.0, math.nan, -math.inf)] == [
        "0.123", "1,234", "3e-09", "5", "NaN", "-∞",
    ]  # fmt: skip
    assert tex(8.6e-5) == r"8.6 \cdot 10^{-5}"
    assert (age(0, 59), age(0, 7200), age(0, 200_000)) == ("just now", "2 h ago", "2 d ago")


@pytest.mark.parametrize(("lowest", "scale"), [(0.1, "log"), (-8.0, "linear")])
def test_the_training_page_shows_negative_losses_and_says_why_their_axis_is_linear(
    lowest, scale, tmp_path, monkeypatch
):
    writer = RunWriter(tmp_path / "signed", {"name": "signed"})
    for step in range(20):
        writer.append("scalars", step + 1, {"loss": 50 + (lowest - 50) * step / 19, "lr": 0.1, "grad_norm": 1.0})
    writer.close("finished")
    app = opened("training", tmp_path, monkeypatch, run="signed")
    spec = json.loads(app.get("vega_lite_chart")[0].proto.spec)
    panel = next(panel for panel in spec["vconcat"] if panel["title"]["text"] == "Loss")
    axis = next(layer["encoding"]["y"] for layer in panel["layer"] if "y" in layer["encoding"])
    assert axis["scale"].get("type", "linear") == scale
    assert ("some losses are negative" in texts(app)) == (scale == "linear")
