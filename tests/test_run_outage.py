"""Directories that stop taking records: training goes on, what was written stays, the gap is an event."""

import errno
import os
import shutil
import subprocess
import time

import pytest

from diagnostics.run import RunWriter, load
from diagnostics.run import outage as outage_module
from diagnostics.run import storage as storage_module


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A file system of one megabyte: a tmpfs where that may be mounted, else one that counts what is written."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], capture_output=True, check=False)
    if mounted.returncode == 0:
        yield path
        subprocess.run(["umount", "-l", path], check=True)
    else:
        monkeypatch.setattr(storage_module.os, "write", counting_write(path, 1 << 20))
        yield path


def counting_write(path, size):
    """`os.write` onto a disk of `size` bytes: takes what fits, then raises as the kernel does."""
    original = os.write

    def write(handle, data):
        used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if used >= size:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(handle, bytes(data)[: size - used])

    return write


def fill(path):
    """Take all the room there is."""
    with (path / "ballast").open("ab", buffering=0) as file:
        for chunk in (1 << 16, 1 << 12, 1):
            try:
                while storage_module.os.write(file.fileno(), bytes(chunk)):
                    pass
            except OSError:
                continue


def train(writer, first, last):
    for step in range(first, last + 1):
        writer.append("scalars", step, {"loss": float(step)})
        writer.append_many("layers", step, ["a", "b"], {"grad_norm": [step, -step]})


def whole(run):
    scalars, (steps, _, values) = run.table("scalars"), run.matrix("layers", "grad_norm")
    assert (scalars["loss"] == scalars["step"]).all() and (values == [[step, -step] for step in steps]).all()
    events = run.table("events")
    assert "damaged" not in events["kind"].tolist()
    return scalars["step"].tolist(), events[events["kind"] == "gap"]


def test_a_full_disk_stops_nothing_and_recording_resumes_in_the_next_stream(disk, caplog):
    writer = RunWriter(disk / "run", {})
    train(writer, 1, 100)
    writer.flush()
    fill(disk)
    train(writer, 101, 2000)
    writer.flush()
    assert len(whole(load(disk / "run"))[0]) >= 100  # what was written stays readable
    before = whole(load(disk / "run"))[0]
    (disk / "ballast").unlink()
    train(writer, 2001, 2100)
    writer.flush()
    writer.close("finished")
    steps, gaps = whole(load(disk / "run"))
    assert before == list(range(1, len(before) + 1)) and steps == list(range(1, 2101))
    assert (
        len(gaps) == 1 and "No space left" in gaps["message"].iloc[0] and "nothing was lost" in gaps["message"].iloc[0]
    )
    assert (disk / "run" / "scalars-0001.arrows").exists() and not (disk / "run" / "scalars-0002.arrows").exists()
    assert caplog.text.count("recording is interrupted") == 1


def test_a_disk_that_stays_full_costs_the_oldest_records_and_says_which(disk, monkeypatch):
    monkeypatch.setattr(outage_module, "KEPT_BYTES_MAX", 100_000)
    writer = RunWriter(disk / "run", {})
    fill(disk)
    for first in range(1, 1000, 100):
        train(writer, first, first + 99)
        writer.flush()
    (disk / "ballast").unlink()
    writer.close("finished")
    steps, gaps = whole(load(disk / "run"))
    assert steps == list(range(steps[0], 1001)) and 1 < steps[0] < 1000
    assert f"steps 1 to {steps[0] - 1} were lost" in gaps["message"].iloc[0]


def test_a_disk_that_is_full_at_the_end_leaves_what_was_written(disk, caplog):
    writer = RunWriter(disk / "run", {})
    train(writer, 1, 100)
    writer.flush()
    fill(disk)
    train(writer, 101, 5000)
    writer.close("finished", {"steps": 5000})
    steps, _ = whole(load(disk / "run"))
    assert steps[:100] == list(range(1, 101)) and "could not be written" in caplog.text


def test_a_directory_that_vanishes_and_comes_back(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    train(writer, 1, 10)
    writer.flush()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    train(writer, 11, 20)
    writer.flush()
    assert not (tmp_path / "run").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    train(writer, 21, 30)
    writer.close("finished")
    steps, gaps = whole(load(tmp_path / "run"))
    assert steps == list(range(1, 31)) and len(gaps) == 1
    assert load(tmp_path / "run").meta["status"] == "finished"


def test_a_directory_that_is_removed_ends_nothing(tmp_path, caplog):
    writer = RunWriter(tmp_path / "run", {})
    train(writer, 1, 10)
    writer.flush()
    shutil.rmtree(tmp_path / "run")
    train(writer, 11, 20)
    writer.update_meta(closure=True)
    writer.close("finished", {})
    assert not (tmp_path / "run").exists() and "recording is interrupted" in caplog.text


def test_a_stream_that_is_removed_is_followed_by_the_next(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    train(writer, 1, 10)
    writer.flush()
    (tmp_path / "run" / "scalars-0000.arrows").unlink()
    train(writer, 11, 20)
    writer.close("finished")
    run = load(tmp_path / "run")
    assert run.steps("scalars").tolist() == list(range(11, 21)) and len(run.steps("layers")) == 20


@pytest.fixture
def writable(monkeypatch):
    """Makes a directory and its files read-only or writable. Root writes anywhere: for root the calls themselves fail,
    with the error the kernel gives on a file system that is mounted read-only."""
    original = os.open

    def refuse(path, flags, *mode):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return original(path, flags, *mode)

    def change(folder, allowed):
        if os.geteuid() == 0:
            monkeypatch.setattr(storage_module.os, "open", original if allowed else refuse)
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755 if allowed else 0o555)

    return change


def test_a_directory_that_becomes_read_only(tmp_path, writable):
    writer = RunWriter(tmp_path / "run", {})
    train(writer, 1, 10)
    writer.flush()
    writable(tmp_path / "run", False)
    train(writer, 11, 20)
    writer.flush()
    assert whole(load(tmp_path / "run"))[0] == list(range(1, 11))
    writable(tmp_path / "run", True)
    train(writer, 21, 30)
    writer.close("finished")
    steps, gaps = whole(load(tmp_path / "run"))
    assert steps == list(range(1, 31)) and len(gaps) == 1


def test_training_is_not_slowed_by_an_outage(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    taken = []
    for step in range(1, 2001):
        began = time.perf_counter()
        writer.append("scalars", step, {"loss": 1.0})
        taken.append(time.perf_counter() - began)
    assert sorted(taken)[-2] < 0.5  # the machine itself may stop once
    writer.close("finished")
