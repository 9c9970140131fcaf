"""One odd folder among the runs: no page breaks by it, and what can be shown of it is shown."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from diagnostics.__main__ import main
from diagnostics.run import load
from diagnostics.views import pages, whatif
from tests.test_views_pages import RUN_PAGES, opened, texts, train

COUNTED: dict[str, Any] = {"counts": {}, "sparkline": [1.0], "steps": 20, "lr": 0.1, "rules_version": ""}
WORST = {"kind": "cliff", "severity": "warning", "first_step": 1, "summary": "s"}
ODD_META: dict[str, dict[str, Any]] = {
    "late": {"created": 1e13},
    "later": {"created": 1e300, "updated": 10**400},
    "half a surrogate": {"name": "\ud800", "optimizer": "\udfff", "config": {"note": "\ud800"}},
    "heavy": {"hyperparameters": [{"lr": "high", "momentum": "heavy", "betas": [0.9, None]}]},
    "one beta": {"hyperparameters": [{"lr": 10**400, "betas": 0.9}]},
    "module without a type": {"modules": [{"name": "a"}, {"type": 3}]},
}
ODD_SUMMARY: dict[str, Any] = {
    "without counts": {"steps": 20, "rules_version": "", "diagnosed": True},
    "without a first step": COUNTED | {"worst": {**WORST, "first_step": None}},
    "fatal": COUNTED | {"worst": {**WORST, "severity": "fatal"}},
    "endless": COUNTED | {"steps": 10**30, "worst": None},
}


def odd(folder: Path, name: str) -> Path:
    """A recorded run whose metadata or summary somebody else wrote."""
    train(folder / name).close("finished")
    for file, values in (("run.json", ODD_META), ("summary.json", ODD_SUMMARY)):
        if name in values:
            path = folder / name / file
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | values[name]))
    return folder / name


@pytest.mark.parametrize("name", [*ODD_META, *ODD_SUMMARY])
def test_an_odd_run_is_listed(name, tmp_path, monkeypatch, capsys):
    run = load(odd(tmp_path, name))
    assert run.summary is None and 0 <= run.meta["created"] < 9e9
    assert all(isinstance(module["type"], str) for module in run.meta["modules"])
    app = opened("runs", tmp_path, monkeypatch)
    assert not app.exception
    row = app.dataframe[0].value.set_index("id").loc[name]
    assert row["updates"] == 20 and row["state"] == "■ finished"
    assert main(["ls", str(tmp_path)]) == 0 and "finished" in capsys.readouterr().out


@pytest.mark.every_case
@pytest.mark.parametrize("page", [*RUN_PAGES, "compare"])
def test_odd_metadata_opens_on_every_page(page, tmp_path, monkeypatch):
    for name in ODD_META:
        odd(tmp_path, name)
    app = opened(page, tmp_path, monkeypatch)
    for name in ODD_META:
        app.selectbox(key="a" if page == "compare" else "picked").set_value(name).run()
        assert not app.exception, f"{name}: {app.exception[0].value}"


@pytest.mark.exhaustive
def test_a_name_that_is_not_utf8_is_shown_as_far_as_it_is(tmp_path, monkeypatch):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    train(folder).close("finished")
    (folder / os.fsdecode(b"note\xff")).write_text("a file beside the run's")
    for page in pages.PAGES:
        app = opened(page, tmp_path, monkeypatch)
        assert not app.exception
    app = opened("diagnosis", tmp_path, monkeypatch, run="caf?")
    assert not app.exception and "20 updates" in texts(app)


def test_a_run_may_be_named_as_the_table_names_its_settings(tmp_path, monkeypatch):
    train(tmp_path / "setting", optimizer="SGD").close("finished")
    train(tmp_path / "other", optimizer="Adam").close("finished")
    app = opened("compare", tmp_path, monkeypatch, a="setting", b="other")
    assert not app.exception
    assert app.dataframe[0].value.loc["optimizer"].to_dict() == {"setting": "SGD", "other": "Adam"}


@pytest.mark.parametrize("group", [{"momentum": "heavy"}, {"betas": 0.9}, {"betas": [None, 0.9]}, {"betas": []}])
def test_what_if_starts_at_the_usual_momentum_where_none_is_told(group):
    assert whatif.own_name("SGD", group) == "gradient descent" and whatif.nearest_momentum(group) == 0.9


@pytest.mark.parametrize("page", ["curvature", "whatif"])
def test_a_run_of_quick_estimates_alone_says_so(page, tmp_path, monkeypatch):
    """Of the stability ratio of Adam: no eigenvalue of the Hessian itself is known, and none is shown as NaN."""
    writer = train(tmp_path / "quick", optimizer="Adam")
    quick = {"stability": 0.3, "preconditioned": 60.0, "preconditioned_residual": 0.1, "oscillation_limit": 0.5}
    writer.append("curvature", 10, {"eigenvalues": [], "residuals": [], **quick})
    writer.close("finished")
    app = opened(page, tmp_path, monkeypatch, run="quick")
    assert not app.exception
    (said,) = [each.value for each in app.info]
    assert "quick ones, of the stability ratio alone" in said
    if page == "curvature":
        assert [(each.label, each.value) for each in app.metric] == [("Stability ratio s", "0.3")]
