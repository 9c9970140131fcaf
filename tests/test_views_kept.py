"""Diagnoses kept on disk: the same as made anew, made once, and made again when the run or a rule changed."""

import gc
import json
import os
from weakref import ref

import pytest

from diagnostics.rules import Diagnosis, diagnose
from diagnostics.run import RunWriter, load, runs
from diagnostics.run import kept as store
from diagnostics.views import data, kept

SAMPLES = runs(data.SAMPLES)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recorded(folder, steps: int = 20):
    writer = RunWriter(folder, {"name": folder.name})
    for step in range(1, steps + 1):
        writer.append("scalars", step, {"loss": 1 / step, "lr": 0.1, "grad_norm": 1.0})
    writer.close("finished")
    return load(folder)


@pytest.mark.parametrize("run", SAMPLES, ids=[run.meta["name"] for run in SAMPLES])
def test_what_is_kept_is_what_was_found(run):
    found = diagnose(run)
    assert kept.from_json(json.loads(json.dumps(kept.to_json(found)))) == found


def test_a_run_is_diagnosed_once(tmp_path, monkeypatch):
    run = recorded(tmp_path / "runs" / "run")
    first = kept.diagnosis(run)
    monkeypatch.setattr(kept, "diagnose", lambda _: pytest.fail("diagnosed twice"))
    assert kept.diagnosis(load(run.path)) == first
    assert sorted(file.suffix for file in (tmp_path / "runs" / "run").iterdir()) == [".arrows", ".json", ".schema"]


def test_it_is_made_again_when_run_or_rules_changed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(kept, "diagnose", lambda run: calls.append(run.last_step) or Diagnosis())
    kept.diagnosis(recorded(tmp_path / "run"))
    RunWriter(tmp_path / "run", {}).close("finished")  # nothing new
    for file in (tmp_path / "run").iterdir():
        file.unlink()
    kept.diagnosis(recorded(tmp_path / "run"))  # another run of the same size in its place
    monkeypatch.setattr(kept, "_rules", lambda: "other rules")
    kept.diagnosis(load(tmp_path / "run"))
    assert len(calls) == 3


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"findings": [{"kind": 1}]}', '{"findings": 3}'])
def test_a_rotten_cache_is_made_anew(tmp_path, text):
    run = recorded(tmp_path / "run")
    first = kept.diagnosis(run)
    (file,) = (tmp_path / "cache" / "diagnostics" / "diagnoses").iterdir()
    file.write_text(text)
    assert kept.diagnosis(load(run.path)) == first
    assert file.read_text() != text


def test_the_oldest_go_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FILES_MAX", 3)
    for number in range(6):
        store.keep("diagnoses", str(number), number)
        file = tmp_path / "cache" / "diagnostics" / "diagnoses" / f"{number}.json"
        os.utime(file, (number, number))
    assert [store.recall("diagnoses", str(number)) for number in range(6)] == [None, None, None, 3, 4, 5]


def test_of_a_run_that_trains_one_state_is_kept(tmp_path):
    """Each refresh makes a new one, which holds the whole run."""
    writer = RunWriter(tmp_path / "live", {"name": "live"})
    states = []
    for step in range(1, 4):
        writer.append("scalars", step, {"loss": 1.0})
        writer.flush()
        states.append(ref(data.current(str(tmp_path / "live"))[0]))
    gc.collect()
    assert [state() is not None for state in states] == [False, False, True]
    assert states[-1]().last_step == 3 and data.current(str(tmp_path / "live"))[0] is states[-1]()
    writer.close("finished")


def test_a_rule_that_failed_is_tried_again(tmp_path, monkeypatch):
    run = recorded(tmp_path / "run")
    monkeypatch.setattr(kept, "diagnose", lambda _: Diagnosis(crashed={"cliff": "MemoryError: "}))
    assert kept.diagnosis(run).crashed
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not kept.diagnosis(load(run.path)).crashed
