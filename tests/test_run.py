"""The store's contract: what was appended is what is read."""

import json
import os
import threading
import time

import numpy as np
import pandas as pd
import pytest

import diagnostics
from diagnostics.metrics import TABLES
from diagnostics.run import Run, RunError, RunWriter, cached_summary, load, runs, stamp, summarize


def record(folder, steps=20, status="finished", **meta):
    """A run with something in every table."""
    writer = RunWriter(folder, {"name": "example", "optimizer": "SGD", **meta})
    for step in range(1, steps + 1):
        writer.append("scalars", step, {"time": 1e9 + step, "loss": 1 / step, "lr": 0.1, "grad_norm": float(step)})
        if step % 5 == 0:
            writer.append_many("layers", step, ["a", "b"], {"grad_norm": [step, 2 * step], "weight_norm": np.ones(2)})
            writer.append_many("units", step, ["relu"], {"activation": ["relu"], "units": [4], "dead_fraction": [0.5]})
            writer.append("curvature", step, {"eigenvalues": [3.0, 2.0], "smallest": -1.0, "method": "double backward"})
            writer.log(step, {"accuracy": step / 100})
    writer.event(3, "skipped-step", "the scaler skipped a step", "scaler")
    writer.close(status)
    return load(folder)


def test_values_come_back_in_the_types_of_the_vocabulary(tmp_path):
    run = record(tmp_path / "run")
    scalars = run.table("scalars")
    assert scalars["step"].tolist() == list(range(1, 21))
    assert scalars["loss"].tolist() == [1 / step for step in range(1, 21)]
    assert scalars["update_norm"].isna().all()
    layers = run.table("layers")
    assert layers["layer"].tolist() == ["a", "b"] * 4
    assert layers["grad_norm"].tolist() == [5, 10, 10, 20, 15, 30, 20, 40]
    assert layers["grad_norm"].dtype == np.float32 and layers["step"].dtype == np.int64
    units = run.table("units", ["layer", "activation", "units", "dead_fraction", "mean"])
    assert units.iloc[0].tolist()[:4] == ["relu", "relu", 4, 0.5] and np.isnan(units["mean"].iloc[0])
    curvature = run.table("curvature")
    assert curvature["eigenvalues"].iloc[0] == [3.0, 2.0] and curvature["residuals"].iloc[0] == []
    assert curvature["method"].iloc[0] == "double backward" and curvature["start"].iloc[0] == ""
    assert run.table("events").to_dict("records") == [
        {"step": 3, "kind": "skipped-step", "message": "the scaler skipped a step", "subject": "scaler"}
    ]


def test_logged_numbers_are_columns_of_scalars_at_their_step(tmp_path):
    run = record(tmp_path / "run")
    accuracy = run.table("scalars", ["step", "accuracy"]).set_index("step")["accuracy"]
    assert accuracy[10] == 0.1 and accuracy.notna().sum() == 4
    assert run.table("logged")["accuracy"].tolist() == [0.05, 0.1, 0.15, 0.2]


def test_a_logged_number_never_passes_for_a_measured_one(tmp_path):
    with_names = RunWriter(tmp_path / "run", {})
    with_names.append("scalars", 1, {"loss": 1.0})
    with_names.log(1, {"loss": 7.0, "step": 9.0})
    with_names.close("finished")
    scalars = load(tmp_path / "run").table("scalars")
    assert scalars["loss"].tolist() == [1.0]
    assert scalars["loss (logged)"].tolist() == [7.0]
    assert scalars["step"].tolist() == [1] and scalars["step (logged)"].tolist() == [9.0]


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_table_has_the_right_columns_and_types(tmp_path, name):
    RunWriter(tmp_path / "run", {}).close("finished")
    empty = load(tmp_path / "run").table(name)
    assert empty.columns.tolist() == list(TABLES[name].names) and len(empty) == 0
    full = record(tmp_path / "full").table(name)
    assert empty.dtypes.to_dict().items() <= full.dtypes.to_dict().items()


def test_unknown_names_are_key_errors_that_list_what_there_is(tmp_path):
    run = record(tmp_path / "run")
    with pytest.raises(KeyError, match="scalars, layers"):
        run.table("gradients")
    with pytest.raises(KeyError, match="grad_norm"):
        run.table("scalars", ["gradnorm"])
    with pytest.raises(KeyError, match="layers, units"):
        run.matrix("scalars", "loss")
    with pytest.raises(KeyError):
        run.matrix("units", "activation")


def test_matrix_is_the_unfolded_table_folded(tmp_path):
    run = record(tmp_path / "run")
    steps, names, values = run.matrix("layers", "grad_norm")
    frame = run.table("layers").pivot(index="step", columns="layer", values="grad_norm")
    assert steps.tolist() == frame.index.tolist() and names.tolist() == frame.columns.tolist()
    np.testing.assert_array_equal(values, frame.to_numpy())
    assert np.isnan(run.matrix("layers", "silent_fraction")[2]).all()
    assert run.matrix("units", "units")[2].tolist() == [[4.0]] * 4


def test_layers_that_change_share_a_matrix_and_keep_a_stream_each(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    for step in range(1, 7):
        names = ["a", "b"] if step % 2 else ["b", "c"]
        writer.append_many("layers", step, names, {"grad_norm": [step, 10 * step]})
        writer.flush()
    writer.close("finished")
    steps, names, values = load(tmp_path / "run").matrix("layers", "grad_norm")
    assert steps.tolist() == [1, 2, 3, 4, 5, 6] and names.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(values[:2], [[1, 10, np.nan], [np.nan, 2, 20]])
    assert sorted(file.name for file in (tmp_path / "run").glob("*.arrows")) == [
        "layers-0000.arrows",
        "layers-0001.arrows",
    ]
    assert load(tmp_path / "run").table("layers")["layer"].tolist() == ["a", "b", "b", "c"] * 3


def test_a_column_that_appears_later_is_missing_before(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.append_many("layers", 1, ["a"], {"grad_norm": [1.0]})
    writer.append("scalars", 1, {"loss": 1.0})
    writer.flush()
    writer.append_many("layers", 2, ["a"], {"weight_norm": [2.0]})
    writer.append("scalars", 2, {"loss": 0.5, "temperature": 300.0})
    writer.close("finished")
    run = load(tmp_path / "run")
    assert run.table("layers", ["grad_norm", "weight_norm"]).isna().to_numpy().tolist() == [
        [False, True],
        [True, False],
    ]
    assert run.table("scalars", ["temperature"])["temperature"].isna().tolist() == [True, False]


def test_values_that_are_not_finite_are_data(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    for step, loss in enumerate([1.0, np.inf, -np.inf, np.nan], 1):
        writer.append("scalars", step, {"loss": loss})
        writer.append_many("layers", step, ["a"], {"grad_norm": [loss * 1e300]})
    writer.close("finished")
    run = load(tmp_path / "run")
    np.testing.assert_array_equal(run.table("scalars")["loss"], [1.0, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(run.matrix("layers", "grad_norm")[2][:, 0], [np.inf, np.inf, -np.inf, np.nan])


def test_the_writer_copies_what_it_is_given(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    buffer, values = np.ones(1), {"loss": 1.0}
    writer.append_many("layers", 1, ["a"], {"grad_norm": buffer})
    writer.append("scalars", 1, values)
    buffer[0] = values["loss"] = 9.0
    writer.close("finished")
    run = load(tmp_path / "run")
    assert run.matrix("layers", "grad_norm")[2].tolist() == [[1.0]] and run.table("scalars")["loss"].tolist() == [1.0]


def test_what_is_no_record_becomes_an_event_and_stops_nothing(tmp_path, caplog):
    writer = RunWriter(tmp_path / "run", {})
    for step in range(1, 6):
        writer.append("scalars", step, {"loss": "large" if step == 3 else 1.0})
    writer.append_many("layers", 5, ["a", "b"], {"grad_norm": [1.0]})
    writer.append_many("units", 6, ["a", "b"], {"activation": ["relu"], "mean": [1.0, 2.0]})
    writer.append_many("units", 7, [object()], {"mean": [1.0]})
    writer.close("finished")
    run = load(tmp_path / "run")
    assert run.table("scalars")["step"].tolist() == [1, 2, 4, 5]
    events = run.table("events")
    assert events["kind"].tolist() == ["record-refused"] * 4 and events["step"].tolist() == [3, 5, 6, 7]
    assert "large" in events["message"].iloc[0] and "2 names" in events["message"].iloc[1]
    assert "no record" in caplog.text


def test_a_snapshot_does_not_change_and_refresh_adds_what_is_new(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.append("scalars", 1, {"loss": 1.0})
    writer.flush()
    before = load(tmp_path / "run")
    writer.append("scalars", 2, {"loss": 0.5})
    writer.flush()
    assert before.table("scalars")["step"].tolist() == [1]
    assert before.refresh().table("scalars")["step"].tolist() == [1, 2]
    assert load(tmp_path / "run").meta["status"] == "running"
    writer.close("finished")


def test_what_a_reader_writes_into_a_table_stays_its_own(tmp_path):
    run = record(tmp_path / "run")
    for columns in (None, ["step", "loss"], ["loss"]):
        frame = run.table("scalars", columns)
        frame.loc[:, "loss"] = 7.0
        frame.iloc[0, 0] = 7.0 if columns == ["loss"] else 7
    run.matrix("layers", "grad_norm")[2][:] = 7.0
    run.matrix("layers", "grad_norm")[0][:] = 7
    for kept in run.matrix("layers", "grad_norm", copy=False)[::2]:
        with pytest.raises(ValueError, match="read-only"):
            kept[:] = 7
    run.steps("scalars")[:] = 7
    assert run.table("scalars")["loss"].tolist() == [1 / step for step in range(1, 21)]
    assert run.table("scalars")["step"].tolist() == run.steps("scalars").tolist() == list(range(1, 21))
    assert run.matrix("layers", "grad_norm")[2][0].tolist() == [5.0, 10.0]
    assert run.steps("layers").tolist() == [5, 10, 15, 20]


def test_refresh_reads_only_what_is_new(tmp_path, monkeypatch):
    from diagnostics.run.storage import Local

    writer = RunWriter(tmp_path / "run", {})
    for step in range(1, 10_001):
        writer.append("scalars", step, {"loss": 1.0})
    writer.flush()
    run = load(tmp_path / "run")
    run.table("scalars", ["loss"])
    writer.append("scalars", 10_001, {"loss": 2.0})
    writer.flush()
    read, original = [], Local.read
    monkeypatch.setattr(Local, "read", lambda self, *a: read.append(original(self, *a)) or read[-1])
    again = run.refresh()
    assert again.table("scalars", ["loss"])["loss"].iloc[-1] == 2.0
    new = sum(len(data) for data in read if len(data) < 1 << 16)
    assert new < 20_000 and sum(map(len, read)) < 200_000 < (tmp_path / "run" / "scalars-0000.arrows").stat().st_size
    writer.close("finished")


def test_a_run_that_vanished_is_an_error_with_its_path(tmp_path):
    run = record(tmp_path / "run")
    run.table("scalars")
    (tmp_path / "run").rename(tmp_path / "gone")
    for read in (run.refresh, lambda: run.table("curvature")):
        with pytest.raises(RunError, match=rf"{tmp_path / 'run'}.* Next: "):
            read()


def test_a_second_process_sees_a_step_within_two_seconds(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    run, began = load(tmp_path / "run"), time.monotonic()
    writer.append("scalars", 1, {"loss": 1.0})
    while run.last_step < 1:
        assert time.monotonic() - began < 2
        time.sleep(0.05)
        run = run.refresh()
    writer.close("finished")


def test_a_number_that_is_not_finite_is_written_at_once(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    time.sleep(0.6)  # the writer has just begun to wait
    writer.append("scalars", 1, {"loss": float("nan")})
    time.sleep(0.2)
    assert load(tmp_path / "run").last_step == 1
    writer.close("finished")


def test_until_knows_nothing_later(tmp_path):
    run = record(tmp_path / "run").until(10)
    assert run.last_step == 10 and run.meta["status"] == "running"
    assert run.table("scalars")["step"].max() == 10 and run.matrix("layers", "grad_norm")[0].tolist() == [5, 10]
    assert run.until(12).last_step == 10 and run.until(5).steps("layers").tolist() == [5]
    assert record(tmp_path / "other").until(20).meta["status"] == "finished"


def test_a_run_in_memory_answers_like_one_on_disk(tmp_path):
    disk = record(tmp_path / "run")
    memory = Run.from_frames(disk.meta, {name: disk.table(name) for name in TABLES})
    for name in TABLES:
        pd.testing.assert_frame_equal(memory.table(name), disk.table(name))
    for ours, theirs in zip(memory.matrix("layers", "grad_norm"), disk.matrix("layers", "grad_norm"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    short = Run.from_frames({}, {"layers": pd.DataFrame({"step": [2, 1], "layer": ["a", "a"], "grad_norm": [1, 2]})})
    assert short.table("layers")["grad_norm"].tolist() == [2, 1] and short.table("layers")["weight_norm"].isna().all()
    assert short.until(1).table("layers")["step"].tolist() == [1]


def test_appending_from_many_threads_loses_nothing(tmp_path):
    writer = RunWriter(tmp_path / "run", {})

    def append(thread):
        for step in range(500):
            writer.append("logged", step, {f"thread{thread}": step})

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close("finished")
    logged = load(tmp_path / "run").table("logged")
    for number in range(4):
        assert logged[f"thread{number}"].dropna().tolist() == list(range(500))


def test_continuing_keeps_everything(tmp_path):
    record(tmp_path / "run", 20)
    writer = RunWriter(tmp_path / "run", {"name": "renamed"})
    assert writer.resumed_from == 20
    writer.append("scalars", 21, {"loss": 0.0})
    writer.close("failed")
    run = load(tmp_path / "run")
    assert run.table("scalars")["step"].tolist() == list(range(1, 22))
    assert run.meta["name"] == "renamed" and run.meta["status"] == "failed"
    assert (tmp_path / "run" / "scalars-0001.arrows").exists() and run.summary is None


def test_an_abandoned_branch_is_kept_but_hidden(tmp_path):
    record(tmp_path / "run", 20)
    writer = RunWriter(tmp_path / "run", {}, first_step=11)
    assert writer.resumed_from == 10
    for step in range(11, 14):
        writer.append("scalars", step, {"loss": -1.0})
    writer.close("finished")
    run = load(tmp_path / "run")
    assert run.table("scalars")["step"].tolist() == list(range(1, 14))
    assert run.table("scalars")["loss"].iloc[-3:].tolist() == [-1.0] * 3
    assert run.steps("layers").tolist() == [5, 10] and run.last_step == 13
    assert RunWriter(tmp_path / "run", {}).resumed_from == 13


def test_a_second_writer_is_refused_with_host_and_process(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    with pytest.raises(RunError, match=rf"process {writer._meta['writer']['pid']} on host .* Next: "):
        RunWriter(tmp_path / "run", {})
    writer.close("finished")
    RunWriter(tmp_path / "run", {}).close("finished")


@pytest.mark.parametrize(("age", "refused"), [(5, True), (60, False)])
def test_the_heartbeat_decides_about_a_writer_on_another_machine(tmp_path, age, refused):
    record(tmp_path / "run")
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    meta |= {"status": "running", "updated": time.time() - age}
    meta["writer"] = {"host": "elsewhere", "pid": 7, "machine": "another kernel", "started": "1"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(meta))
    assert load(tmp_path / "run").meta["status"] == ("running" if refused else "interrupted")
    if refused:
        with pytest.raises(RunError, match="process 7 on host elsewhere"):
            RunWriter(tmp_path / "run", {})
    else:
        RunWriter(tmp_path / "run", {}).close("finished")


def test_a_file_that_is_renamed_while_files_are_listed_is_passed_over(tmp_path, monkeypatch):
    record(tmp_path / "run")
    temporary = tmp_path / "run" / ".scalars-0000.schema.1"

    class Listed(list):
        __enter__, __exit__ = list.__iter__, lambda *_: None

    def scandir(path, original=os.scandir):
        temporary.touch()
        entries = Listed(original(path))
        temporary.unlink()  # between its listing and the question for its size
        return entries

    monkeypatch.setattr("os.scandir", scandir)
    assert len(load(tmp_path / "run").table("scalars")) == 20
    assert "run.json" in [name for name, *_ in stamp(tmp_path / "run")]


def test_the_heartbeat_beats(tmp_path, monkeypatch):
    monkeypatch.setattr("diagnostics.run.writer.HEARTBEAT_SECONDS", 0.1)
    writer = RunWriter(tmp_path / "run", {})
    first = load(tmp_path / "run").meta["updated"]
    writer.append("scalars", 1, {"loss": 1.0})
    time.sleep(1.3)
    meta = load(tmp_path / "run").meta
    assert meta["updated"] > first and meta["last_step"] == 1
    writer.close("finished")


def test_on_flush_is_called_in_the_background_and_may_fail(tmp_path):
    called = []

    def on_flush():
        called.append(threading.current_thread() is not threading.main_thread())
        raise ValueError("broken callback")

    writer = RunWriter(tmp_path / "run", {}, on_flush=on_flush)
    time.sleep(0.8)
    writer.close("finished")
    events = load(tmp_path / "run").table("events")
    assert called and all(called)
    assert events["kind"].iloc[0] == "on-flush-failed" and "broken callback" in events["message"].iloc[0]


def test_a_slow_callback_does_not_delay_the_next_flush(tmp_path):
    release = threading.Event()
    writer = RunWriter(tmp_path / "run", {}, on_flush=lambda: release.wait(10) and None)
    time.sleep(0.7)  # the callback now waits
    writer.append("scalars", 1, {"loss": 1.0})
    time.sleep(0.8)
    assert load(tmp_path / "run").last_step == 1
    release.set()
    writer.close("finished")


def test_update_meta_replaces_run_json(tmp_path):
    writer = RunWriter(tmp_path / "run", {"closure": None})
    writer.update_meta(closure=True, config={"seed": 1})
    meta = load(tmp_path / "run").meta
    assert meta["closure"] is True and meta["config"] == {"seed": 1} and meta["status"] == "running"
    writer.close("finished")


def test_appending_to_a_closed_run_is_no_error(tmp_path, caplog):
    writer = RunWriter(tmp_path / "run", {})
    writer.close("finished")
    writer.append("scalars", 1, {"loss": 1.0})
    writer.flush()
    writer.close("failed")
    assert "closed" in caplog.text and load(tmp_path / "run").meta["status"] == "finished"


def test_a_listing_is_newest_first_and_shows_what_is_broken(tmp_path):
    for number, name in enumerate(["old", "new"]):
        record(tmp_path / name, 3)
        meta = json.loads((tmp_path / name / "run.json").read_text()) | {"created": 1e9 + number}
        (tmp_path / name / "run.json").write_text(json.dumps(meta))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    (tmp_path / "notes").mkdir()
    listed = diagnostics.runs(tmp_path)
    assert [run.path.rsplit("/", 1)[1] for run in listed] == ["new", "old", "bad"]
    assert listed[2].meta["status"] == "broken" and "bad" in listed[2].meta["error"]
    assert runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize("what", ["missing", "file", "empty", "garbage"])
def test_what_is_no_run_is_an_error_with_the_path_and_the_next_step(tmp_path, what):
    path = tmp_path / what
    if what == "file":
        path.write_text("hello")
    elif what != "missing":
        path.mkdir()
    if what == "garbage":
        (path / "run.json").write_text("[1, 2")
    with pytest.raises(diagnostics.RunError, match=rf"{path}.*Next: "):
        diagnostics.load(path)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot be written .*Next: give another run_dir"):
        RunWriter(tmp_path / "file" / "run", {})


def test_summary_counts_and_sparkline(tmp_path):
    run = record(tmp_path / "run", 500)
    summary = summarize(run)
    assert summary["steps"] == 500 and summary["loss"] == 1 / 500 and summary["events"] == {"skipped-step": 1}
    assert len(summary["sparkline"]) == 60 and summary["sparkline"][-1] == 1 / 500
    assert json.loads(json.dumps(summary)) == summary


def test_a_killed_run_is_summarized_once_outside_the_runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = record(tmp_path / "runs" / "killed")
    before = sorted(file.name for file in (tmp_path / "runs" / "killed").iterdir())
    first = cached_summary(run)
    monkeypatch.setattr("diagnostics.run.summary.summarize", lambda *_: pytest.fail("summarized twice"))
    assert cached_summary(load(run.path)) == first
    assert sorted(file.name for file in (tmp_path / "runs" / "killed").iterdir()) == before
