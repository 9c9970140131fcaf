"""Torn and rotten files: what is whole is read, the rest is named in the run's events, no number is ever wrong."""

import json
import random
import shutil
import zlib

import pyarrow as pa
import pytest

from diagnostics.run import RunError, RunWriter, load, runs
from diagnostics.run.frames import frame_at, schema_end

BATCHES, STEPS = 6, 4  # flushes, and steps in each


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A finished run of six record batches a stream."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    writer = RunWriter(folder, {"name": "run"})
    for batch in range(BATCHES):
        for step in range(batch * STEPS + 1, (batch + 1) * STEPS + 1):
            writer.append("scalars", step, {"loss": 1000.0 + step})
            writer.append_many("layers", step, ["a", "b"], {"grad_norm": [step, -step]})
        writer.flush()
    writer.close("finished")
    return folder


@pytest.fixture
def folder(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "run")


def boundaries(data: bytes) -> list[int]:
    """Offsets behind each record batch, by the messages' own lengths."""
    view, end = memoryview(data), schema_end(memoryview(data))
    seed, found = zlib.crc32(data[:end]), []
    while end < len(data):
        end = frame_at(view, end, seed).end
        found.append(end)
    return found


def steps_of(run):
    """Recorded steps, after making sure that every number is the one that was written."""
    scalars, (steps, _, values) = run.table("scalars"), run.matrix("layers", "grad_norm")
    assert (scalars["loss"] == 1000.0 + scalars["step"]).all()
    assert (values[:, 0] == steps).all() and (values[:, 1] == -steps).all()
    return scalars["step"].tolist()


def damaged(run):
    events = run.table("events")
    return events[events["kind"] == "damaged"]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("file", "stride"),
    [
        pytest.param("layers-0000.arrows", 1, marks=pytest.mark.by_hand),
        pytest.param("layers-0000.arrows", 7, marks=pytest.mark.exhaustive),
        ("scalars-0000.arrows", 37),
    ],
)
def test_a_stream_cut_at_any_byte_of_its_last_two_batches_is_read_to_its_last_whole_one(folder, file, stride):
    data = (folder / file).read_bytes()
    ends = boundaries(data)
    assert len(ends) == BATCHES
    for cut in range(ends[-3], len(data) + 1, stride):
        (folder / file).write_bytes(data[:cut])
        run = load(folder)
        whole = sum(end <= cut for end in ends) * STEPS
        table = "scalars" if file.startswith("scalars") else "layers"
        assert run.steps(table).tolist() == list(range(1, whole + 1)), cut
        steps_of(run)
        events = damaged(run)
        assert len(events) == (cut not in ends), cut
        if cut not in ends:
            assert file in events["message"].iloc[0] and events["step"].iloc[0] == whole


def test_a_zero_filled_tail_is_named(folder):
    file = folder / "scalars-0000.arrows"
    data = file.read_bytes()
    for tail in (1, 7, 8, 9, 4096, 200_000):
        file.write_bytes(data + bytes(tail))
        run = load(folder)
        assert len(steps_of(run)) == BATCHES * STEPS
        assert f"{tail} bytes" in damaged(run)["message"].iloc[0]


def test_a_tail_overwritten_with_zeros_loses_only_what_it_covers(folder):
    file = folder / "scalars-0000.arrows"
    data = file.read_bytes()
    ends = boundaries(data)
    for kept in range(ends[-2] - 40, ends[-1], 13):
        file.write_bytes(data[:kept] + bytes(len(data) - kept))
        whole = sum(end <= kept for end in ends)
        assert len(steps_of(load(folder))) in (whole * STEPS, BATCHES * STEPS)  # the batch may end in zeros itself


def test_a_flipped_bit_costs_one_batch_and_never_a_wrong_number(folder):
    file = folder / "scalars-0000.arrows"
    data = file.read_bytes()
    ends, header = boundaries(data), schema_end(memoryview(data))
    for place in random.Random(0).sample(range(header, len(data)), 200):
        rotten = bytearray(data)
        rotten[place] ^= 1 << (place % 8)
        file.write_bytes(rotten)
        hit = sum(end <= place for end in ends)
        expected = [step for step in range(1, BATCHES * STEPS + 1) if (step - 1) // STEPS != hit]
        run = load(folder)
        assert steps_of(run) == expected, place
        assert damaged(run)["step"].tolist() == [hit * STEPS]


@pytest.mark.exhaustive
def test_a_flipped_bit_in_the_schema_is_mended_from_its_copy(folder):
    file = folder / "scalars-0000.arrows"
    data = file.read_bytes()
    for place in range(0, schema_end(memoryview(data)), 23):
        rotten = bytearray(data)
        rotten[place] ^= 4
        file.write_bytes(rotten)
        run = load(folder)
        assert len(steps_of(run)) == BATCHES * STEPS
        assert damaged(run)["subject"].tolist() == [file.name]
        assert "scalars-0000.schema was used" in damaged(run)["message"].iloc[0]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "copy",
    [
        "missing",
        pytest.param("rotten", marks=pytest.mark.exhaustive),
        pytest.param("another stream's", marks=pytest.mark.exhaustive),
    ],
)
def test_a_flipped_bit_in_a_schema_without_its_copy_leaves_the_other_streams(folder, copy):
    file, beside = folder / "scalars-0000.arrows", folder / "scalars-0000.schema"
    data = file.read_bytes()
    if copy == "missing":
        beside.unlink()
    else:
        beside.write_bytes(
            beside.read_bytes()[:-1] if copy == "rotten" else (folder / "layers-0000.schema").read_bytes()
        )
    assert len(steps_of(load(folder))) == BATCHES * STEPS  # the copy alone is needed for nothing
    for place in range(0, schema_end(memoryview(data)), 23):
        rotten = bytearray(data)
        rotten[place] ^= 4
        file.write_bytes(rotten)
        run = load(folder)
        assert len(run.table("scalars")) == 0 and len(run.table("layers")) == 2 * BATCHES * STEPS
        assert (damaged(run)["subject"] == file.name).all() and len(damaged(run))


def test_garbage_in_the_middle_of_a_file_costs_what_it_covers(folder):
    file = folder / "layers-0000.arrows"
    data = file.read_bytes()
    ends = boundaries(data)
    garbage = random.Random(1).randbytes(5000)
    file.write_bytes(data[: ends[1]] + garbage + data[ends[1] :])
    run = load(folder)
    assert run.steps("layers").tolist() == list(range(1, BATCHES * STEPS + 1))
    assert "5000 bytes" in damaged(run)["message"].iloc[0] and damaged(run)["step"].iloc[0] == 2 * STEPS


@pytest.mark.parametrize("content", [b"", b"\xff", b"not arrow", bytes(1000), b"ARROW1\0\0" + bytes(100)])
def test_an_empty_or_foreign_file_is_named(folder, content):
    (folder / "curvature-0000.arrows").write_bytes(content)
    run = load(folder)
    assert len(steps_of(run)) == BATCHES * STEPS and len(run.table("curvature")) == 0
    assert damaged(run)["subject"].tolist() == ["curvature-0000.arrows"]


def test_a_foreign_arrow_stream_is_named(folder):
    batch = pa.record_batch({"step": [1], "loss": [3.0]})
    with pa.OSFile(str(folder / "scalars-0001.arrows"), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    run = load(folder)
    assert len(steps_of(run)) == BATCHES * STEPS
    assert "not written by diagnostics" in damaged(run)["message"].iloc[0]


def test_a_stream_under_another_tables_name_is_named(folder):
    shutil.copy(folder / "scalars-0000.arrows", folder / "batches-0000.arrows")
    run = load(folder)
    assert len(run.table("batches")) == 0 and "another name" in damaged(run)["message"].iloc[0]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '"text"', "[" * 100_000, "\x00" * 50])
def test_without_its_run_json_a_run_still_opens(folder, content):
    (folder / "run.json").unlink()
    if content is not None:
        (folder / "run.json").write_text(content)
    run = load(folder)
    assert len(steps_of(run)) == BATCHES * STEPS
    assert run.meta["name"] == "run" and run.meta["status"] == "interrupted" and run.meta["layers"] == []
    assert "run.json" in damaged(run)["message"].iloc[0]
    assert [run.meta["status"] for run in runs(folder.parent)] == ["interrupted"]


def test_metadata_of_wrong_types_gives_way_to_defaults(folder):
    hostile = {"name": 5, "status": "excellent", "created": "yesterday", "layers": [1, {"name": "a"}], "config": 3}
    (folder / "run.json").write_text(json.dumps(hostile | {"updated": float("inf"), "modules": None, "writer": "me"}))
    meta = load(folder).meta
    assert meta["name"] == "run" and meta["status"] == "interrupted" and meta["created"] == 0.0
    unknown = {
        "shape": [],
        "parameters": 0,
        "frozen": False,
        "tied": [],
        "module": "",
        "optimized": True,
        "group": None,
    }
    assert meta["layers"] == [{"name": "a"} | unknown]
    assert meta["config"] == {} and meta["updated"] == 0.0 and meta["modules"] == []
    assert meta["linear_model"] is False and meta["guessing"] is None  # what an earlier version did not write


@pytest.mark.parametrize("number", [99, "two", None, 1.5])
def test_of_a_newer_format_what_is_known_is_read_and_the_rest_named(folder, number):
    meta = json.loads((folder / "run.json").read_text())
    meta["versions"]["format"] = number
    (folder / "run.json").write_text(json.dumps(meta))
    run = load(folder)
    assert len(steps_of(run)) == BATCHES * STEPS and run.meta["name"] == meta["name"]
    named = damaged(run)["message"].tolist()
    assert len(named) == 1 and f"format {number}" in named[0] and "pip install --upgrade" in named[0]
    assert [listed.meta["status"] for listed in runs(folder.parent)] == [meta["status"]]
    with pytest.raises(RunError, match=r"cannot be continued: .*newer version"):
        RunWriter(folder, {})
    assert load(folder).meta["versions"]["format"] == number


def test_a_stream_of_a_newer_format_is_named(folder):
    from diagnostics.run import layout

    schema = layout.Layout("curvature", ("smallest",)).schema(1, 1)
    newer = schema.with_metadata(
        {b"diagnostics": schema.metadata[b"diagnostics"].replace(b'"format": 1', b'"format": 2')}
    )
    (folder / "curvature-0000.arrows").write_bytes(newer.serialize().to_pybytes())
    assert "newer version" in damaged(load(folder))["message"].iloc[0]


def test_a_live_run_may_stop_within_a_record(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.append("scalars", 1, {"loss": 1001.0})
    writer.flush()
    file = tmp_path / "run" / "scalars-0000.arrows"
    whole = file.read_bytes()
    header = schema_end(memoryview(whole))
    with file.open("ab") as stream:
        stream.write(whole[header:-3])
    run = load(tmp_path / "run")
    assert run.steps("scalars").tolist() == [1] and len(damaged(run)) == 0
    with file.open("ab") as stream:
        stream.write(whole[-3:])
    assert run.refresh().steps("scalars").tolist() == [1] and len(run.refresh().table("scalars")) == 2
    writer.close("finished")


def test_damage_found_before_a_refresh_is_not_forgotten(folder):
    file = folder / "scalars-0000.arrows"
    data = bytearray(file.read_bytes())
    data[boundaries(bytes(data))[1] - 9] ^= 1
    file.write_bytes(data)
    run = load(folder)
    assert len(damaged(run)) == 1
    (folder / "scalars-0000.arrows").write_bytes(data + b"x" * 10)
    assert len(damaged(run.refresh())) == 2


def test_a_run_with_rotten_files_can_be_continued(folder):
    (folder / "run.json").write_text("{")
    file = folder / "scalars-0000.arrows"
    file.write_bytes(file.read_bytes()[:-5])
    writer = RunWriter(folder, {"name": "again"})
    assert writer.resumed_from == (BATCHES - 1) * STEPS
    writer.append("scalars", writer.resumed_from + 1, {"loss": 1001.0 + writer.resumed_from})
    writer.close("finished")
    run = load(folder)
    assert run.table("scalars")["step"].tolist() == list(range(1, (BATCHES - 1) * STEPS + 2))
    assert run.meta["name"] == "again"
