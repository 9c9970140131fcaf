"""What is said of a run as a whole: the worst of all of it, and no "no alarm" where hardly anything was looked at."""

import json
import math

import pytest
import torch
from torch import nn

import diagnostics
from diagnostics.__main__ import main
from diagnostics.charts.theme import VERDICTS
from diagnostics.rules import VERSION, Verdict, diagnose, verdict
from diagnostics.run import RunWriter, cached_summary, load, summarize
from diagnostics.views import report
from tests.test_views_pages import opened, texts

NOTHING = {
    "steps": 100,
    "updates": 100,
    "losses": 100,
    "last_told": 100,
    "other_weights": 0,
    "events": {},
    "ended_by": "",
    "damaged": [],
    "worst": None,
    "checks": [13, 15],
}
WORST = {"kind": "lr-unstable", "severity": "warning", "first_step": 2, "summary": "The rate is too large: it blew up."}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def said(status: str = "finished", **changes) -> Verdict:
    return verdict(NOTHING | changes, status)


@pytest.fixture
def recovered(tmp_path):
    """A rate of 2.2 times the inverse curvature for 30 updates, each of which multiplies the error by -1.2; then the
    weights are set back, and the rate is lowered to half the inverse curvature."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.2)
    with diagnostics.watch(model, optimizer, tmp_path / "runs" / "recovered") as monitor:
        for step in range(1, 101):
            if step == 31:
                optimizer.param_groups[0]["lr"] = 0.5
                nn.init.ones_(model.weight)
            optimizer.zero_grad()
            loss = 0.5 * (model.weight**2).sum() + 0.01
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda: 0.5 * (model.weight**2).sum() + 0.01)
    return tmp_path / "runs" / "recovered"


def test_the_summary_is_of_the_run_as_it_ended(recovered):
    """Rules that wait for the end of a run must not wait when its summary is made."""
    (alarm,) = diagnose(load(recovered)).alarms
    assert alarm.kind == "lr-unstable" and alarm.last_step == 30
    worst = json.loads((recovered / "summary.json").read_text())["worst"]
    assert (worst["kind"], worst["first_step"], worst["last_step"]) == ("lr-unstable", alarm.first_step, 30)


def test_what_ended_counts_everywhere_and_is_said_to_have_ended(recovered, tmp_path, monkeypatch, capsys):
    assert main(["ls", str(recovered.parent)]) == 0
    assert "lr unstable, ended at step 30" in capsys.readouterr().out
    assert main(["check", str(recovered)]) == 1
    assert main(["show", str(recovered)]) == 0
    assert "(ended at step 30)" in " ".join(capsys.readouterr().out.split())  # it may be wrapped
    table = opened("runs", recovered.parent, monkeypatch).dataframe[0].value
    mine = table[table["id"] == "recovered"].iloc[0]
    assert mine["worst"] == "◆ lr unstable, ended at step 30" and mine["alarms"] == 1
    title = opened("diagnosis", recovered.parent, monkeypatch, run="recovered").title[0].value
    assert "◆" in title and "ended at step 30" in title
    assert "(ended at step 30)" in report.page(load(recovered))
    app = opened("compare", recovered.parent, monkeypatch, a="recovered", b="sample/healthy-mlp")
    assert "ended at step 30" in texts(app) and "14 of 15 checked" in texts(app)


@pytest.mark.parametrize(
    ("changes", "sign", "headline"),
    [
        ({}, "clean", "No alarm: 13 of 15 checked, nothing found"),
        ({"status": "running"}, "clean", "No alarm so far: 13 of 15 checked, nothing found"),
        ({"checks": [8, 15]}, "clean", "No alarm: 8 of 15 checked, nothing found"),
        ({"checks": [7, 15]}, "open", "Too little was measured to judge: 7 of 15 checked, nothing found"),
        ({"updates": 19}, "open", "Too short to judge: 19 updates recorded, many checks need 20"),
        ({"updates": 1, "status": "running"}, "open", "Too early to judge: 1 update recorded, many checks need 20"),
        ({"losses": 6}, "open", "Too short to judge: 6 of 100 losses recorded, many checks need 20"),
        (
            {"other_weights": 41},
            "open",
            "No alarm, but from step 41 on with other weights than it had: 13 of 15 checked",
        ),
        ({"losses": 0}, "open", "Nothing to judge yet: no loss was recorded; call `monitor.step("),
        (
            {"losses": 0, "events": {"loss-unreadable": 1}},
            "open",
            "Nothing to judge yet: what `monitor.step` was given",
        ),
        ({"updates": 0, "losses": 0}, "open", "Nothing to judge yet: no update was recorded; call `monitor.step("),
        ({"status": "failed"}, "open", "Training failed: 13 of 15 checked, nothing found"),
        ({"worst": WORST | {"severity": "info"}}, "clean", "No alarm: 13 of 15 checked, nothing wrong"),
        (
            {"worst": WORST | {"severity": "info", "cause": "hardly-learned"}},
            "open",
            "No alarm, and hardly anything learned: 13 of 15 checked",
        ),
        (
            {"worst": WORST | {"severity": "info", "cause": "rows-scaled"}},
            "open",
            "No alarm, but each example was scaled by itself: 13 of 15 checked",
        ),
        (
            {"worst": WORST | {"severity": "info", "cause": "weight-decay"}},
            "open",
            "No alarm, but a weight decay may hold the loss up: 13 of 15 checked",
        ),
        ({"worst": WORST | {"last_step": None}, "losses": 0}, "warning", "The rate is too large"),
        ({"worst": WORST | {"last_step": 9}}, "warning", "The rate is too large (ended at step 9)"),
    ],
)
def test_no_alarm_is_said_only_of_what_was_looked_at(changes, sign, headline):
    found = said(**changes)
    assert found.sign == sign and found.headline.startswith(headline)


def test_every_verdict_has_a_sign():
    assert VERDICTS["open"].glyph != VERDICTS["clean"].glyph and VERDICTS["open"].markdown == "gray"


def recorded(folder, updates: int, loss: float = 1.0, status: str = "finished", events=()) -> None:
    writer = RunWriter(folder, {"name": folder.name, "optimizer": "SGD"})
    for step in range(1, updates + 1):
        writer.append("scalars", step, {"time": 1e9 + step, "loss": loss, "lr": 0.1, "grad_norm": 1.0})
    for kind, message in events:
        writer.event(updates + 1, kind, message)
    writer.close(status)


@pytest.mark.parametrize(
    ("updates", "loss", "status", "headline"),
    [
        (0, 1.0, "finished", "no update was recorded"),
        (10, 1.0, "finished", "10 updates recorded, many checks need 20"),
        (30, math.nan, "finished", "no loss was recorded"),
        (30, 1.0, "failed", "4 of 15 checked, nothing found"),
    ],
)
def test_the_same_is_said_everywhere(updates, loss, status, headline, tmp_path, monkeypatch, capsys):
    """`4 of 15`: what is known of a loss, its gradient norm and rate alone."""
    raised = [("interrupted", "training ended with KeyError: 'mine'")] if status == "failed" else []
    recorded(tmp_path / "runs" / "odd", updates, loss, status, raised)
    run = load(tmp_path / "runs" / "odd")
    found = verdict(summarize(run, diagnose(run)), status)
    assert found.sign == "open" and headline in found.headline
    assert found.notes == (("Training ended with KeyError: 'mine'.",) if raised else ())
    main(["show", run.path])
    main(["check", run.path])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count(found.headline) == 2 and printed.count("KeyError: 'mine'.") == 2 * len(raised)
    main(["ls", str(tmp_path / "runs")])
    assert found.cell in capsys.readouterr().out
    table = opened("runs", tmp_path / "runs", monkeypatch).dataframe[0].value
    assert table[table["id"] == "odd"].iloc[0]["worst"] == f"– {found.cell}"
    app = opened("diagnosis", tmp_path / "runs", monkeypatch, run="odd")
    assert app.title[0].value.startswith(":gray[–]")
    assert [warning.value for warning in app.warning] == [r"Training ended with KeyError\: \'mine\'\."] * len(raised)
    assert headline in (html := report.page(run)) and html.count("KeyError") == len(raised)


def test_an_exception_of_an_earlier_session_ended_nothing(tmp_path):
    recorded(tmp_path / "run", 30, status="failed", events=[("interrupted", "training ended with KeyError: 'mine'")])
    RunWriter(tmp_path / "run", {}).close("interrupted")
    assert summarize(load(tmp_path / "run"))["ended_by"] != ""
    writer = RunWriter(tmp_path / "run", {})
    writer.event(31, "resumed", "continues after update 30")
    writer.close("interrupted")
    assert summarize(load(tmp_path / "run"))["ended_by"] == ""


def test_a_file_that_was_cut_off_is_named_with_what_is_lost(recovered, capsys):
    """The summary that the run wrote is not of what is left."""
    file = recovered / "scalars-0000.arrows"
    file.write_bytes(file.read_bytes()[:1000])
    main(["ls", str(recovered.parent)])
    assert "damaged: no update" in capsys.readouterr().out
    main(["show", str(recovered)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "scalars-0000.arrows is damaged, and no update can be read" in printed
    assert "Loss, learning rate and gradient norm there are lost (0 of 100 updates can be read)" in printed
    summary = cached_summary(load(recovered), diagnose, str(VERSION))
    assert [file for file, _, _ in summary["damaged"]] == ["scalars-0000.arrows"]


def test_of_damage_that_a_copy_made_good_nothing_is_lost(recovered):
    file = recovered / "scalars-0000.arrows"
    data = bytearray(file.read_bytes())
    data[300] ^= 4
    file.write_bytes(data)
    run = load(recovered)
    assert "damaged" in set(run.table("events")["kind"]) and summarize(run)["damaged"] == []
