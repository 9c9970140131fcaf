"""Runs beyond this machine: any fsspec URL, with the memory file system standing in for an object store."""

import uuid

import fsspec
import pytest

from diagnostics.run import RunError, RunWriter, load, runs

WHOLE = {"steps": 20, "lr": None, "counts": {}, "sparkline": [], "worst": None}


@pytest.fixture
def url():
    yield (url := f"memory://{uuid.uuid4().hex}")
    if fsspec.filesystem("memory").exists(url):
        fsspec.filesystem("memory").rm(url, recursive=True)


def train(writer, first, last):
    for step in range(first, last + 1):
        writer.append("scalars", step, {"loss": float(step)})
        writer.append_many("layers", step, ["a", "b"], {"grad_norm": [step, -step]})
    writer.flush()


def test_a_run_is_written_as_immutable_segments_and_read_back(url):
    writer = RunWriter(f"{url}/run", {"name": "remote"})
    train(writer, 1, 10)
    system = fsspec.filesystem("memory")
    first = system.cat_file(f"{url}/run/scalars-0000.arrows")
    train(writer, 11, 20)
    assert system.cat_file(f"{url}/run/scalars-0000.arrows") == first
    assert system.exists(f"{url}/run/scalars-0001.arrows")
    live = load(f"{url}/run")
    assert live.meta["status"] == "running" and live.last_step == 20
    writer.close("finished", WHOLE)
    run = live.refresh()
    assert run.summary is not None and run.summary | WHOLE == run.summary
    assert run.meta["status"] == "finished" and run.path == f"{url}/run"
    assert run.table("scalars")["loss"].tolist() == [float(step) for step in range(1, 21)]
    assert run.matrix("layers", "grad_norm")[2].tolist() == [[step, -step] for step in range(1, 21)]


def test_remote_runs_are_listed_and_continued(url):
    for name in ("one", "two"):
        writer = RunWriter(f"{url}/{name}", {"name": name})
        train(writer, 1, 5)
        writer.close("finished")
    assert {run.meta["name"] for run in runs(url)} == {"one", "two"}
    writer = RunWriter(f"{url}/one", {}, first_step=4)
    train(writer, 4, 4)
    writer.close("finished")
    assert load(f"{url}/one").steps("scalars").tolist() == [1, 2, 3, 4]


def test_a_second_remote_writer_is_refused(url):
    writer = RunWriter(f"{url}/run", {})
    with pytest.raises(RunError, match="is being written by process"):
        RunWriter(f"{url}/run", {})
    writer.close("finished")


def test_what_is_not_there_is_an_error_with_the_url(url):
    with pytest.raises(RunError, match=r"memory://.*Next: "):
        load(f"{url}/nothing")
    with pytest.raises(RunError, match=r"nosuchprotocol://.*Next: "):
        load("nosuchprotocol://bucket/run")
    assert runs(f"{url}/nothing") == [] and runs("nosuchprotocol://bucket") == []
    with pytest.raises(RunError, match=r"nosuchprotocol://.*Next: "):
        RunWriter("nosuchprotocol://bucket/run", {})


def test_a_torn_segment_is_named(url):
    writer = RunWriter(f"{url}/run", {})
    train(writer, 1, 5)
    train(writer, 6, 10)
    writer.close("finished")
    system, path = fsspec.filesystem("memory"), f"{url}/run/scalars-0001.arrows"
    system.pipe_file(path, system.cat_file(path)[:-10])
    run = load(f"{url}/run")
    assert run.steps("scalars").tolist() == [1, 2, 3, 4, 5]
    assert "scalars-0001.arrows" in run.table("events")["message"].iloc[0]


def test_an_unreachable_store_does_not_stop_training(url, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    writer = RunWriter(f"{url}/run", {})
    train(writer, 1, 5)
    original = MemoryFileSystem.pipe_file

    def refuse(*_, **__):
        raise RuntimeError("connection reset")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    train(writer, 6, 10)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", original)
    writer.close("finished")
    run = load(f"{url}/run")
    assert run.steps("scalars").tolist() == list(range(1, 11)) and "gap" in run.table("events")["kind"].tolist()
