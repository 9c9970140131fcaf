"""Every page runs without an exception, on real runs and on everything that is not one."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from diagnostics.run import RunWriter
from diagnostics.views import pages

ROOT = Path(__file__).parents[1]
PAGES = [name for name in pages._PAGES if name != "runs"]


def opened(name: str, folder: Path, monkeypatch, **params: str) -> AppTest:
    """A page as a browser would open it, with the runs of `folder`."""
    monkeypatch.setenv("DIAGNOSTICS_RUNS", str(folder))
    app = AppTest.from_string(f"from diagnostics.views import {name}\n{name}.page()", default_timeout=30)
    for key, value in params.items():
        app.query_params[key] = value
    return app.run()


def texts(app: AppTest) -> str:
    kinds = (app.title, app.header, app.markdown, app.caption, app.info, app.error, app.success, app.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{ not json")
    return tmp_path


def test_an_empty_folder_says_how_to_record_a_first_run(tmp_path, monkeypatch):
    app = opened("runs", tmp_path, monkeypatch)
    assert not app.exception
    assert "diagnostics.watch(" in texts(app)


@pytest.mark.parametrize("name", PAGES)
def test_a_broken_run_is_a_sentence_on_every_page(name, broken, monkeypatch):
    app = opened(name, broken, monkeypatch, run="torn")
    assert not app.exception
    if name not in ("compare", "lecture"):
        assert "torn" in texts(app)


@pytest.mark.parametrize("name", PAGES)
def test_a_run_without_any_update_opens_on_every_page(name, tmp_path, monkeypatch):
    RunWriter(tmp_path / "fresh", {"name": "fresh"}).close("finished")
    app = opened(name, tmp_path, monkeypatch, run="fresh")
    assert not app.exception
